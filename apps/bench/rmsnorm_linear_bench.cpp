#include <algorithm>
#include <cmath>

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
    const RmsNormLinearForward<T> p{
        .shape = s,
        .x = a.input<T>(s.rows * s.in),
        .v = a.input<T>(weights(s), kWeights),
        .y = a.output<T>("y", s.rows * s.out),
        .r = a.output<acc_t<T>>("r", s.rows),
        .z = s.gated() ? a.input<T>(s.rows * s.z_stride) + (s.z_stride - s.in) : nullptr,
        .workspace = a.workspace(rmsnorm_linear_forward_workspace<T>(queue, s))};
    return [&queue, p] { rmsnorm_linear_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const RmsNormLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const T* const z = a.input<T>(s.rows * s.z_stride) + (s.z_stride - s.in);
    T* const dy = const_cast<T*>(a.input<T>(s.rows * s.out));
    a.restore(dy);
    const RmsNormLinearBackward<T> p{
        .shape = s,
        .dy = dy,
        .y = a.input<T>(s.rows * s.out, {.deviation = 0.5 * s.in / std::sqrt(s.out)}),
        .r = a.wide_input<T>(s.rows, kRates),
        .v = a.input<T>(weights(s), kWeights),
        .x = a.input<T>(s.rows * s.in),
        .dx = a.output<T>("dx", s.rows * s.in),
        .dv = a.output<acc_t<T>>("dv", weights(s)),
        .z = z,
        .dz = a.output<T>("dz", Rows{s.rows, s.in, s.z_stride}),
        .workspace = a.workspace(rmsnorm_linear_backward_workspace<T>(queue, s))};
    return [&queue, p] {
      rmsnorm_linear_backward(queue, p);
      rmsnorm_linear_backward_weight(queue, p);
    };
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
  add("gated forward", rmsnorm_linear_forward_work(timed, list.compute), forward);
  add("gated backward", rmsnorm_linear_backward_work(timed, list.compute), backward);
  checked.z_stride = timed.z_stride = 0;
  add("forward", rmsnorm_linear_forward_work(timed, list.compute), forward);
}

}  // namespace fm
