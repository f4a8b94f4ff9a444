#include "apps/bench/kernel_bench.h"
#include "kernels/linear_combination/linear_combination_cases.h"

namespace fm {
namespace {

constexpr int kTerms = 2;  // an Euler step

Call combine(BenchArrays& a, const std::int64_t& count) {
  return a.typed([&]<class T>(auto& queue) {
    LinearCombination<acc_t<T>> p{count, kTerms, {}, {1, 0.25f}, nullptr};
    for (int i = 0; i < kTerms; ++i) p.x[i] = a.wide_input<T>(count);
    p.out = a.output<acc_t<T>>("out", count);
    return [&queue, p] { linear_combination(queue, p); };
  });
}

}  // namespace

void bench_linear_combination(BenchList& list) {
  const std::int64_t checked = kLinearCombinationCases[3], timed = kLinearCombinationPaper;
  list.add("linear_combination", "two terms", concat("n", timed), kLinearCombinationTolerance,
           linear_combination_work(timed, kTerms, acc_dtype(list.compute)), combine, checked,
           timed);
}

}  // namespace fm
