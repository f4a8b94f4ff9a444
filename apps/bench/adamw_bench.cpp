#include "apps/bench/kernel_bench.h"
#include "kernels/adamw/adamw_cases.h"

namespace fm {
namespace {

constexpr int kRing = 4;  // step records

Call prepare(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    using A = acc_t<T>;
    const OptimizerPrepare<A> p{.count = count,
                                .grad = a.wide_input<T>(count, {.deviation = 1e-3}),
                                .loss = a.wide_values<T>({0.5f}),
                                .settings = {},
                                .state = a.state(StepState{}),
                                .ring = a.scratch<StepRecord>(kRing),
                                .ring_size = kRing,
                                .grad_norm = a.output<A>("grad_norm", 1),
                                .workspace = a.workspace(optimizer_prepare_workspace(count))};
    return [&queue, p] { optimizer_prepare(queue, p); };
  });
}

// A tenth step, as optimizer_prepare leaves the state.
Call update(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    StepState state;
    state.step = state.adam_steps = 10;
    state.grad_factor = 0.5f;
    state.lr = 1e-4f;
    state.bias_correction1 = 0.65f;
    state.bias_correction2 = 0.01f;
    std::vector<std::uint8_t> decays(static_cast<std::size_t>(count / kDecayChunk));
    for (std::size_t i = 0; i < decays.size(); ++i) decays[i] = i % 3 != 0;
    AdamWUpdate<T> p{.count = count,
                     .grad = a.wide_input<T>(count, {.deviation = 1e-3}),
                     .master = a.wide_inout<T>("master", count, {.deviation = 0.1}),
                     .m = a.wide_inout<T>("m", count, {.deviation = 1e-3}),
                     .v = a.wide_inout<T>("v", count, {.deviation = 1e-7, .mean = 1e-6}),
                     .ema = nullptr,
                     .compute = nullptr,
                     .decays = a.values(decays),
                     .settings = {},
                     .state = a.values(std::vector<StepState>{state})};
    if constexpr (sizeof(T) < sizeof(acc_t<T>)) p.compute = a.output<T>("compute", count);
    return [&queue, p] { adamw_update(queue, p); };
  });
}

}  // namespace

void bench_adamw(BenchList& list) {
  const std::int64_t checked = kAdamWCases[2], timed = kAdamWPaper;
  const std::string shape = concat("n", timed);
  list.add("adamw", "prepare", shape, in_float(kAdamWTolerance), optimizer_prepare_work(timed),
           prepare, checked, timed);
  list.add("adamw", "update", shape, kAdamWTolerance, adamw_update_work(timed, list.compute, false),
           update, checked, timed);
}

}  // namespace fm
