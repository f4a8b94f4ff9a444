// The two halves of the backward pass. Internal to kernels/swiglu_mlp.
#pragma once

#include "kernels/swiglu_mlp/swiglu_mlp.h"

namespace fm {

// dx, from x, dy and the weights.
template <class T>
void swiglu_mlp_backward_input(CudaQueue&, const SwigluMlpBackward<T>&);
// dw12, db12, dw3 and db3.
template <class T>
void swiglu_mlp_backward_weights(CudaQueue&, const SwigluMlpBackward<T>&);

}  // namespace fm
