#include "kernels/linear_rmsnorm/linear_rmsnorm_fused.cuh"
#include "kernels/linear_rmsnorm/linear_rmsnorm_parts.h"

namespace fm {

template <class T>
void linear_rmsnorm_forward(CudaQueue& queue, const LinearRmsNormForward<T>& p) {
  linear_rmsnorm_check(p.shape);
  if constexpr (sizeof(T) == 2)
    if (linear_rmsnorm_forward_fused(queue, p)) return;
  linear_rmsnorm_forward_in_parts(queue, p);
}

template <class T>
void linear_rmsnorm_backward(CudaQueue& queue, const LinearRmsNormBackward<T>& p) {
  linear_rmsnorm_check(p.shape);
  if constexpr (sizeof(T) == 2)
    if (linear_rmsnorm_backward_fused(queue, p)) return;
  linear_rmsnorm_backward_in_parts(queue, p);
}

template void linear_rmsnorm_forward(CudaQueue&, const LinearRmsNormForward<float>&);
template void linear_rmsnorm_forward(CudaQueue&, const LinearRmsNormForward<f16>&);
template void linear_rmsnorm_forward(CudaQueue&, const LinearRmsNormForward<bf16>&);
template void linear_rmsnorm_backward(CudaQueue&, const LinearRmsNormBackward<float>&);
template void linear_rmsnorm_backward(CudaQueue&, const LinearRmsNormBackward<f16>&);
template void linear_rmsnorm_backward(CudaQueue&, const LinearRmsNormBackward<bf16>&);

}  // namespace fm
