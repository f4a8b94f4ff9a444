#include "apps/bench/kernel_bench.h"
#include "kernels/swiglu/swiglu_cases.h"

namespace fm {
namespace {

Call forward(BenchArrays& a, const SwigluShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const std::int64_t count = s.rows * s.hidden;
    const SwigluForward<T> p{s, a.input<T>(2 * count, {.deviation = 2}), a.output<T>("y", count)};
    return [&queue, p] { swiglu_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const SwigluShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const std::int64_t count = s.rows * s.hidden;
    const SwigluBackward<T> p{s, a.input<T>(2 * count, {.deviation = 2}), a.input<T>(count),
                              a.output<T>("dab", 2 * count), a.output<T>("y", count)};
    return [&queue, p] { swiglu_backward(queue, p); };
  });
}

}  // namespace

void bench_swiglu(BenchList& list) {
  const SwigluShape checked = kSwigluCases[2];
  const SwigluShape timed{list.scaled(kSwigluPaper.rows), kSwigluPaper.hidden};
  const std::string shape = concat("rows", timed.rows, " h", timed.hidden);
  list.add("swiglu", "forward", shape, kSwigluTolerance, swiglu_forward_work(timed, list.compute),
           forward, checked, timed);
  list.add("swiglu", "backward", shape, kSwigluTolerance, swiglu_backward_work(timed, list.compute),
           backward, checked, timed);
}

}  // namespace fm
