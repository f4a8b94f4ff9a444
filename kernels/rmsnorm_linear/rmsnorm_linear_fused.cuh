// rmsnorm_linear's products of 16-bit elements with what belongs to them folded in: the forward one
// makes the gated rows as they come and takes their sums of squares on the way; the backward one
// makes dx, dz and dV in one pass. Where the shape does not allow it, rmsnorm_linear_cuda.cu takes
// matmul's products and passes around them.
#pragma once

#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {

// Whether the kernels below take such arrays, if they are aligned to 16 bytes.
template <class T>
bool rmsnorm_linear_forward_fits(const CudaQueue&, const RmsNormLinearShape&);

// Return false, having launched nothing, where the shape or the alignment does not allow it.
template <class T>
bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<T>&);
// For few rows, without a gate.
template <class T>
bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<T>&);
template <class T>
bool rmsnorm_linear_backward_fused(CudaQueue&, const RmsNormLinearBackward<T>&);
template <class T>
void rmsnorm_linear_backward_fused_weight(CudaQueue&, const RmsNormLinearBackward<T>&);
// 0 where there will be no such kernel.
template <class T>
std::size_t rmsnorm_linear_backward_fused_workspace(const CudaQueue&, const RmsNormLinearShape&);

}  // namespace fm
