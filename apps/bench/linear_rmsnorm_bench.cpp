#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm_cases.h"

namespace fm {
namespace {

constexpr Normal kMatrix{.deviation = 0.06}, kWeights{.deviation = 0.2, .mean = 1};

std::int64_t inputs(const LinearRmsNormShape& s) {
  return s.rows * s.groups * s.in;
}
std::int64_t outputs(const LinearRmsNormShape& s) {
  return s.rows * s.groups * s.out();
}
std::int64_t matrix(const LinearRmsNormShape& s) {
  return std::int64_t{s.groups} * s.out() * s.in;
}
std::int64_t weights(const LinearRmsNormShape& s, int segment) {
  return std::int64_t{s.groups} * s.segment_width[segment];
}

Call forward(BenchArrays& a, const LinearRmsNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    LinearRmsNormForward<T> p{.shape = s,
                              .x = a.input<T>(inputs(s)),
                              .w = a.input<T>(matrix(s), kMatrix),
                              .weight = {},
                              .raw = a.output<T>("raw", outputs(s)),
                              .y = a.output<T>("y", outputs(s))};
    for (int i = 0; i < s.segments; ++i) p.weight[i] = a.wide_input<T>(weights(s, i), kWeights);
    return [&queue, p] { linear_rmsnorm_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const LinearRmsNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    LinearRmsNormBackward<T> p{.shape = s,
                               .raw = a.input<T>(outputs(s)),
                               .w = a.input<T>(matrix(s), kMatrix),
                               .weight = {},
                               .dy = a.input<T>(outputs(s)),
                               .draw = a.output<T>("draw", outputs(s)),
                               .dx = a.inout<T>("dx", inputs(s)),
                               .accumulate = true,
                               .dweight = {},
                               .workspace = a.workspace(linear_rmsnorm_backward_workspace<T>(s))};
    for (int i = 0; i < s.segments; ++i) {
      p.weight[i] = a.wide_input<T>(weights(s, i), kWeights);
      p.dweight[i] = a.output<acc_t<T>>(concat("dweight ", i), weights(s, i));
    }
    return [&queue, p] { linear_rmsnorm_backward(queue, p); };
  });
}

}  // namespace

void bench_linear_rmsnorm(BenchList& list) {
  LinearRmsNormShape timed = kLinearRmsNormPaper;
  timed.rows = list.scaled(timed.rows);
  LinearRmsNormShape checked = timed;
  checked.rows = std::min<std::int64_t>(timed.rows, 26003);  // enough for the fused kernels
  const std::string shape = concat("rows", timed.rows, " ", timed.in, ">", timed.out(), " g",
                                   timed.groups, " s", timed.segments);
  list.add("linear_rmsnorm", "forward", shape, kLinearRmsNormTolerance,
           linear_rmsnorm_forward_work(timed, list.compute), forward, checked, timed);
  list.add("linear_rmsnorm", "backward", shape, kLinearRmsNormTolerance,
           linear_rmsnorm_backward_work(timed, list.compute), backward, checked, timed);
}

}  // namespace fm
