// The three products of a linear layer, each as one Product where no kernel of our own is made for
// it.
#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/product.h"

namespace fm {

template <class T, class Y>
void linear_forward(CudaQueue& queue, const LinearForward<T, Y>& p) {
  const LinearShape s = checked(p.shape);
  if constexpr (sizeof(T) == 2)
    if (linear_few_rows(queue, p, s)) return;
  Product<T, Y> product{.m = s.rows,
                        .n = s.out,
                        .k = s.in,
                        .groups = s.groups,
                        .a = {p.x, s.x_stride, s.x_group, true},
                        .b = {p.w, s.in, std::int64_t{s.out} * s.in, true},
                        .d = p.y,
                        .ldd = s.y_stride,
                        .d_group_stride = s.y_group};
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, Y>)
    if (multiply_many_rows(queue, product, p.bias)) return;
  if (p.bias) {
    if constexpr (std::is_same_v<T, Y>)
      if (s.groups == 1 && multiply_with_bias(queue, product, p.bias)) return;
    // cuBLASLt wants a bias in y's type; the sum is added to it in float and rounded once.
    broadcast_bias(queue, s, p.bias, p.y);
    product.accumulate = true;
  }
  multiply(queue, product);
}

template <class T>
void linear_backward_input(CudaQueue& queue, const LinearBackwardInput<T>& p) {
  const LinearShape s = checked(p.shape);
  const Product<T, T> product{.m = s.rows,
                              .n = s.in,
                              .k = s.out,
                              .groups = s.groups,
                              .a = {p.dy, s.y_stride, s.y_group, true},
                              .b = {p.w, s.in, std::int64_t{s.out} * s.in, false},
                              .d = p.dx,
                              .ldd = s.x_stride,
                              .d_group_stride = s.x_group,
                              .accumulate = p.accumulate};
  if constexpr (sizeof(T) == 2)
    if (multiply_many_rows(queue, product)) return;
  multiply(queue, product);
}

template <class T>
void linear_backward_weight(CudaQueue& queue, const LinearBackwardWeight<T>& p) {
  const LinearShape s = checked(p.shape);
  if constexpr (sizeof(T) == 2)
    if (weight_gradient(queue, p, s)) return;
  multiply(queue, Product<T, float>{.m = s.out,
                                    .n = s.in,
                                    .k = s.rows,
                                    .groups = s.groups,
                                    .a = {p.dy, s.y_stride, s.y_group, false},
                                    .b = {p.x, s.x_stride, s.x_group, false},
                                    .d = p.dw,
                                    .ldd = s.in,
                                    .d_group_stride = std::int64_t{s.out} * s.in});
  if (p.dbias) column_sums(queue, s, p.dy, p.dbias, static_cast<float*>(p.workspace));
}

template void linear_forward(CudaQueue&, const LinearForward<float, float>&);
template void linear_forward(CudaQueue&, const LinearForward<f16, f16>&);
template void linear_forward(CudaQueue&, const LinearForward<f16, float>&);
template void linear_forward(CudaQueue&, const LinearForward<bf16, bf16>&);
template void linear_forward(CudaQueue&, const LinearForward<bf16, float>&);
template void linear_backward_input(CudaQueue&, const LinearBackwardInput<float>&);
template void linear_backward_input(CudaQueue&, const LinearBackwardInput<f16>&);
template void linear_backward_input(CudaQueue&, const LinearBackwardInput<bf16>&);
template void linear_backward_weight(CudaQueue&, const LinearBackwardWeight<float>&);
template void linear_backward_weight(CudaQueue&, const LinearBackwardWeight<f16>&);
template void linear_backward_weight(CudaQueue&, const LinearBackwardWeight<bf16>&);

}  // namespace fm
