#include "apps/bench/kernel_bench.h"
#include "kernels/cast/cast_cases.h"

namespace fm {
namespace {

// Of values that the compute type can hold, so that nothing is rounded.
Call to_compute(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    const Cast<acc_t<T>, T> p{count, a.input<acc_t<T>>(count), a.output<T>("to", count)};
    return [&queue, p] { cast(queue, p); };
  });
}

Call fill_wide(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    const Fill<acc_t<T>> p{count, 0.5f, a.output<acc_t<T>>("to", count)};
    return [&queue, p] { fill(queue, p); };
  });
}

}  // namespace

void bench_cast(BenchList& list) {
  const std::int64_t checked = kCastCases[3], timed = kCastPaper;
  const DType wide = acc_dtype(list.compute);
  const Tolerance exact{0, 0, 0};
  list.add("cast", concat(name_of(wide), " to ", name_of(list.compute)), concat("n", timed), exact,
           cast_work(timed, wide, list.compute), to_compute, checked, timed);
  list.add("cast", "fill", concat("n", timed), exact, fill_work(timed, wide), fill_wide, checked,
           timed);
}

}  // namespace fm
