#include "kernels/base/check.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm_parts.h"

namespace fm {

void linear_rmsnorm_check(const LinearRmsNormShape& s) {
  FM_CHECK(s.in > 0, "[linear_rmsnorm] in must be positive, got ", s.in);
  FM_CHECK(s.segments >= 1 && s.segments <= kRmsNormMaxSegments,
           "[linear_rmsnorm] segments must be 1 to ", kRmsNormMaxSegments, ", got ", s.segments);
  rmsnorm_check(s.norm());
}

template <class T>
void linear_rmsnorm_forward(CpuQueue& queue, const LinearRmsNormForward<T>& p) {
  linear_rmsnorm_check(p.shape);
  linear_rmsnorm_forward_in_parts(queue, p);
}

template <class T>
void linear_rmsnorm_backward(CpuQueue& queue, const LinearRmsNormBackward<T>& p) {
  linear_rmsnorm_check(p.shape);
  linear_rmsnorm_backward_in_parts(queue, p);
}

template void linear_rmsnorm_forward(CpuQueue&, const LinearRmsNormForward<float>&);
template void linear_rmsnorm_forward(CpuQueue&, const LinearRmsNormForward<double>&);
template void linear_rmsnorm_backward(CpuQueue&, const LinearRmsNormBackward<float>&);
template void linear_rmsnorm_backward(CpuQueue&, const LinearRmsNormBackward<double>&);

}  // namespace fm
