// Depthwise causal convolution and SiLU, every direction at once.
#pragma once

#include "engine/context.h"
#include "engine/params.h"
#include "kernels/causal_conv1d/causal_conv1d.h"

namespace fm {

// x: E columns of a [B, L, *] tensor, weight [E, width], bias [E] -> u [B, L, E]. x gets its
// gradient by parts.
Tensor causal_conv1d(Context&, const Columns& x, const Parameter& weight, const Parameter& bias,
                     int directions);

// The gradients of the above, where another operation has made u; does nothing without a tape.
void record_causal_conv1d(Context&, const Columns& x, const Parameter& weight,
                          const Parameter& bias, int directions, const Tensor& u);

// With a tape: u, which nothing reads any more in the forward pass, is dropped, and computed again
// where the backward pass comes to its readers (51 MB at the paper's shape, for 39 us on an H100).
void drop_causal_conv1d(Context&, const Tensor& u, const Columns& x, const Parameter& weight,
                        const Parameter& bias, int directions);

// Throws where x is not `weight`'s channels of a [B, L, *] tensor.
ConvShape conv_shape(const Columns& x, const Parameter& weight, int directions);
template <class T>
ConvForward<T> conv_arguments(const ConvShape& shape, const Columns& x, const Parameter& weight,
                              const Parameter& bias, const Tensor& u) {
  return {.shape = shape,
          .x = x.as<T>(),
          .x_stride = x.stride(),
          .weight = weight.master.as<acc_t<T>>(),
          .bias = bias.master.as<acc_t<T>>(),
          .u = u.as<T>()};
}

}  // namespace fm
