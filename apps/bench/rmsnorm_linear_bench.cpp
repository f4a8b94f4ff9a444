#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear_cases.h"

namespace fm {
namespace {

constexpr Normal kWeights{.deviation = 0.05}, kRates{.deviation = 0.1, .mean = 1};

std::int64_t weights(const RmsNormLinearShape& s) {
  return std::int64_t{s.out} * s.in;
}

Call forward(BenchArrays& a, const RmsNormLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const RmsNormLinearForward<T> p{s, a.input<T>(s.rows * s.in), a.input<T>(weights(s), kWeights),
                                    a.output<T>("y", s.rows * s.out),
                                    a.output<acc_t<T>>("r", s.rows)};
    return [&queue, p] { rmsnorm_linear_forward(queue, p); };
  });
}

Call scale_backward(BenchArrays& a, const RmsNormLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const RmsNormScaleBackward<T> p{s,
                                    a.input<T>(s.rows * s.out),
                                    a.input<T>(s.rows * s.out),
                                    a.wide_input<T>(s.rows, kRates),
                                    a.output<T>("g", s.rows * s.out),
                                    a.output<acc_t<T>>("s", s.rows)};
    return [&queue, p] { rmsnorm_scale_backward(queue, p); };
  });
}

Call backward_input(BenchArrays& a, const RmsNormLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const RmsNormLinearBackwardInput<T> p{.shape = s,
                                          .g = a.input<T>(s.rows * s.out),
                                          .v = a.input<T>(weights(s), kWeights),
                                          .x = a.input<T>(s.rows * s.in),
                                          .s = a.wide_input<T>(s.rows, {.deviation = 0.1}),
                                          .dx = a.output<T>("dx", s.rows * s.in)};
    return [&queue, p] { rmsnorm_linear_backward_input(queue, p); };
  });
}

}  // namespace

// What is done to the weights alone (rmsnorm_fold and its gradient) is too
// small to be timed alone.
void bench_rmsnorm_linear(BenchList& list) {
  RmsNormLinearShape timed = kRmsNormLinearPaper;
  timed.rows = list.scaled(timed.rows);
  RmsNormLinearShape checked = timed;
  checked.rows = std::min<std::int64_t>(timed.rows, 1009);
  const std::string shape = concat("rows", timed.rows, " ", timed.in, ">", timed.out);
  const auto add = [&](const char* call, const Work& work,
                       Call (*make)(BenchArrays&, const RmsNormLinearShape&)) {
    list.add("rmsnorm_linear", call, shape, kRmsNormLinearTolerance, work, make, checked, timed);
  };
  add("forward", rmsnorm_linear_forward_work(timed, list.compute), forward);
  add("scale backward", rmsnorm_scale_backward_work(timed, list.compute), scale_backward);
  add("backward_input", rmsnorm_linear_backward_input_work(timed, list.compute), backward_input);
}

}  // namespace fm
