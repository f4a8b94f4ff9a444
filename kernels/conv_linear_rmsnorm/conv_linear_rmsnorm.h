// The causal convolution of a Mamba layer, the product after it and the norm of that, as one
// operation: what causal_conv1d and linear_rmsnorm do one after the other, without reading u again.
// The backward pass is theirs.
//   u = silu(conv(x)),  raw = u W^T,  y = norm of raw's segments
// The direction of a channel of the convolution is the group of the product. Sources: those two.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm.h"

namespace fm {

template <class T>
struct ConvLinearRmsNormForward {
  ConvForward<T> conv;            // writes u
  LinearRmsNormForward<T> layer;  // x is u
};

// Throws Fault::usage where the two do not fit each other; every entry point calls it.
void conv_linear_rmsnorm_check(const ConvShape&, const LinearRmsNormShape&);

template <class T>
void conv_linear_rmsnorm_forward(CpuQueue&, const ConvLinearRmsNormForward<T>&);
template <class T>
void conv_linear_rmsnorm_forward(CudaQueue&, const ConvLinearRmsNormForward<T>&);

}  // namespace fm
