#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/rmsnorm/rmsnorm_cases.h"

namespace fm {
namespace {

// The shapes' segments cover their rows.
std::int64_t elements(const RmsNormShape& s) {
  return s.rows * s.groups * s.width;
}
constexpr Normal kWeights{.deviation = 0.2, .mean = 1};

Call forward(BenchArrays& a, const RmsNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    RmsNormForward<T> p{s, a.input<T>(elements(s)), {}, a.output<T>("y", elements(s))};
    for (int i = 0; i < s.segments; ++i) p.weight[i] = a.wide_input<T>(s.weights(i), kWeights);
    return [&queue, p] { rmsnorm_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const RmsNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    RmsNormBackward<T> p{.shape = s,
                         .x = a.input<T>(elements(s)),
                         .weight = {},
                         .dy = a.input<T>(elements(s)),
                         .dx = a.output<T>("dx", elements(s)),
                         .dweight = {},
                         .workspace = a.workspace(rmsnorm_backward_workspace<T>(s))};
    for (int i = 0; i < s.segments; ++i) {
      p.weight[i] = a.wide_input<T>(s.weights(i), kWeights);
      p.dweight[i] = a.output<acc_t<T>>(concat("dweight ", i), s.weights(i));
    }
    return [&queue, p] { rmsnorm_backward(queue, p); };
  });
}

void add(BenchList& list, RmsNormShape timed) {
  timed.rows = list.scaled(timed.rows);
  RmsNormShape checked = timed;
  checked.rows = std::min<std::int64_t>(timed.rows, 1009);
  const std::string shape =
      concat("rows", timed.rows, " g", timed.groups, " d", timed.width, " s", timed.segments);
  list.add("rmsnorm", "forward", shape, kRmsNormTolerance,
           rmsnorm_forward_work(timed, list.compute), forward, checked, timed);
  list.add("rmsnorm", "backward", shape, kRmsNormTolerance,
           rmsnorm_backward_work(timed, list.compute), backward, checked, timed);
}

}  // namespace

void bench_rmsnorm(BenchList& list) {
  add(list, kRmsNormPaperStates);
  add(list, kRmsNormPaperOutput);
}

}  // namespace fm
