#include "apps/bench/kernel_bench.h"
#include "kernels/activation/activation_cases.h"

namespace fm {
namespace {

Call forward(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    const SiluForward<T> p{count, a.input<T>(count, {.deviation = 2}), a.output<T>("y", count)};
    return [&queue, p] { silu_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    const SiluBackward<T> p{count, a.input<T>(count, {.deviation = 2}), a.input<T>(count),
                            a.output<T>("dx", count)};
    return [&queue, p] { silu_backward(queue, p); };
  });
}

}  // namespace

void bench_activation(BenchList& list) {
  const std::int64_t checked = kSiluCases[3], timed = list.scaled(kSiluPaper);
  const std::string shape = concat("n", timed);
  list.add("activation", "silu forward", shape, kSiluTolerance,
           silu_forward_work(timed, list.compute), forward, checked, timed);
  list.add("activation", "silu backward", shape, kSiluTolerance,
           silu_backward_work(timed, list.compute), backward, checked, timed);
}

}  // namespace fm
