#include "apps/bench/kernel_bench.h"
#include "kernels/cross_entropy/cross_entropy_cases.h"

namespace fm {
namespace {

std::vector<std::int32_t> labels(const CrossEntropyShape& s) {
  std::vector<std::int32_t> all;
  for (std::int64_t row = 0; row < s.rows; ++row)
    all.push_back(static_cast<std::int32_t>(row * 7 % s.classes));
  return all;
}

Call forward(BenchArrays& a, const CrossEntropyShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const CrossEntropyForward<acc_t<T>> p{s.rows,
                                          s.classes,
                                          a.wide_input<T>(s.rows * s.classes),
                                          a.values(labels(s)),
                                          a.output<acc_t<T>>("loss", 1),
                                          a.workspace(cross_entropy_workspace(s.rows))};
    return [&queue, p] { cross_entropy_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const CrossEntropyShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const CrossEntropyBackward<acc_t<T>> p{s.rows,
                                           s.classes,
                                           a.wide_input<T>(s.rows * s.classes),
                                           a.values(labels(s)),
                                           nullptr,
                                           a.output<acc_t<T>>("dlogits", s.rows * s.classes)};
    return [&queue, p] { cross_entropy_backward(queue, p); };
  });
}

}  // namespace

void bench_cross_entropy(BenchList& list) {
  const CrossEntropyShape s = kCrossEntropyClassifier;
  const std::string shape = concat("rows", s.rows, " c", s.classes);
  // In acc type whatever the compute type is.
  const Tolerance tolerance = {kCrossEntropyTolerance.f32, kCrossEntropyTolerance.f32,
                               kCrossEntropyTolerance.f32};
  list.add("cross_entropy", "forward", shape, tolerance, cross_entropy_forward_work(s), forward, s,
           s);
  list.add("cross_entropy", "backward", shape, tolerance, cross_entropy_backward_work(s), backward,
           s, s);
}

}  // namespace fm
