#include "apps/bench/kernel_bench.h"
#include "kernels/base/rng.h"
#include "kernels/random/random_cases.h"

namespace fm {
namespace {

Call normal(BenchArrays& a, const RandomShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const NormalFill<acc_t<T>> p{
        s.images, s.pixels, 0, 7, stream::sampling, a.output<acc_t<T>>("out", s.images * s.pixels)};
    return [&queue, p] { normal_fill(queue, p); };
  });
}

}  // namespace

void bench_random(BenchList& list) {
  const RandomShape timed = kRandomPaper;
  list.add("random", "normal", concat("b", timed.images, " px", timed.pixels), Tolerance{0, 0, 0},
           normal_fill_work(timed), normal, kRandomCases[3], timed);
}

}  // namespace fm
