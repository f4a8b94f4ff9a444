#include "kernels/gated_linear/gated_linear_steps.h"

namespace fm {

// The product is bound by arithmetic here, so a and b are cheaper to keep than to make again.
template <class T>
bool gated_linear_keeps_ab(CpuQueue&, const GatedLinearShape&) {
  return true;
}

template <class T>
void gated_linear_forward(CpuQueue& queue, const GatedLinearForward<T>& p) {
  check_shape(p.shape);
  gated_linear_forward_steps(queue, p);
}

template <class T>
void gated_linear_backward(CpuQueue& queue, const GatedLinearBackward<T>& p) {
  check_shape(p.shape);
  gated_linear_backward_steps(queue, p);
}

template bool gated_linear_keeps_ab<float>(CpuQueue&, const GatedLinearShape&);
template bool gated_linear_keeps_ab<double>(CpuQueue&, const GatedLinearShape&);
template void gated_linear_forward(CpuQueue&, const GatedLinearForward<float>&);
template void gated_linear_forward(CpuQueue&, const GatedLinearForward<double>&);
template void gated_linear_backward(CpuQueue&, const GatedLinearBackward<float>&);
template void gated_linear_backward(CpuQueue&, const GatedLinearBackward<double>&);

}  // namespace fm
