// rmsnorm_linear's products of 16-bit elements with what belongs to them folded in: the forward one
// takes the rows' sums of squares from the operand as it passes and scales its result by r; the
// backward one subtracts s x. Where the shape does not allow it, rmsnorm_linear_cuda.cu takes
// matmul's product and a pass over its result.
#pragma once

#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {

// Return false, having launched nothing, where the shape or the alignment does not allow it.
template <class T>
bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<T>&);
// For few rows.
template <class T>
bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<T>&);
template <class T>
bool rmsnorm_linear_backward_input_fused(CudaQueue&, const RmsNormLinearBackwardInput<T>&);

}  // namespace fm
