#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/matmul_cases.h"

namespace fm {
namespace {

// The rows of x or y: the groups of a row lie side by side at even distances.
Rows placed(const LinearShape& s, std::int64_t width, std::int64_t stride, std::int64_t group) {
  if (s.groups == 1) return {s.rows, width, stride};
  FM_CHECK(stride == s.groups * group, "[bench] groups must fill a row, got ", stride, " for ",
           s.groups, " of ", group);
  return {s.rows * s.groups, width, group};
}
Rows rows_of_x(const LinearShape& s) {
  return placed(s, s.in, s.x_stride, s.x_group);
}
Rows rows_of_y(const LinearShape& s) {
  return placed(s, s.out, s.y_stride, s.y_group);
}
std::int64_t weights(const LinearShape& s) {
  return std::int64_t{s.groups} * s.out * s.in;
}
std::int64_t outputs(const LinearShape& s) {  // of a row
  return std::int64_t{s.groups} * s.out;
}

// Grouped products have no bias in the model.
Call forward(BenchArrays& a, const LinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const LinearForward<T, T> p{
        s, a.input<T>(s.rows * s.x_stride), a.input<T>(weights(s), {.deviation = 0.3}),
        s.groups == 1 ? a.input<T>(outputs(s)) : nullptr, a.output<T>("y", rows_of_y(s))};
    return [&queue, p] { linear_forward(queue, p); };
  });
}

Call backward_input(BenchArrays& a, const LinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const LinearBackwardInput<T> p{s, a.input<T>(s.rows * s.y_stride),
                                   a.input<T>(weights(s), {.deviation = 0.3}),
                                   a.output<T>("dx", rows_of_x(s))};
    return [&queue, p] { linear_backward_input(queue, p); };
  });
}

Call backward_weight(BenchArrays& a, const LinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const LinearBackwardWeight<T> p{
        .shape = s,
        .dy = a.input<T>(s.rows * s.y_stride),
        .x = a.input<T>(s.rows * s.x_stride),
        .dw = a.output<acc_t<T>>("dw", weights(s)),
        .dbias = s.groups == 1 ? a.output<acc_t<T>>("dbias", outputs(s)) : nullptr,
        .workspace = a.workspace(linear_backward_weight_workspace(s))};
    return [&queue, p] { linear_backward_weight(queue, p); };
  });
}

void add(BenchList& list, LinearShape timed) {
  timed.rows = list.scaled(timed.rows);
  const LinearShape s = checked(timed);
  LinearShape test = s;  // enough rows for what the long sums of the weight gradient take
  test.rows = std::min<std::int64_t>(s.rows, 5003);
  std::string shape = concat("rows", s.rows, " ", s.in, ">", s.out);
  if (s.groups > 1) shape += concat(" g", s.groups);
  list.add("matmul", "forward", shape, kMatmulTolerance,
           linear_forward_work(s, list.compute, list.compute), forward, test, s);
  list.add("matmul", "backward_input", shape, kMatmulTolerance,
           linear_backward_input_work(s, list.compute), backward_input, test, s);
  list.add("matmul", "backward_weight", shape, kMatmulWideTolerance,
           linear_backward_weight_work(s, list.compute), backward_weight, test, s);
}

}  // namespace

void bench_matmul(BenchList& list) {
  for (const LinearShape& shape : kMatmulPaper) add(list, shape);
}

}  // namespace fm
