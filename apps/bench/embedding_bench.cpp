#include "apps/bench/kernel_bench.h"
#include "kernels/embedding/embedding_cases.h"

namespace fm {
namespace {

std::int64_t rows(const EmbeddingShape& s) {
  return std::int64_t{s.batch} * s.width;
}
std::int64_t table(const EmbeddingShape& s) {
  return (s.classes + std::int64_t{1}) * s.width;
}
std::vector<std::int32_t> labels(const EmbeddingShape& s) {
  std::vector<std::int32_t> all;
  for (int b = 0; b < s.batch; ++b) all.push_back(b * 7 % (s.classes + 1));
  return all;
}

Call sinusoid(BenchArrays& a, const EmbeddingShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    std::vector<float> times;
    for (int b = 0; b < s.batch; ++b) times.push_back((static_cast<float>(b) + 0.37f) / 256);
    const SinusoidEmbedding<T> p{s.batch, s.width, 1000, a.wide_values<T>(times),
                                 a.output<T>("out", rows(s))};
    return [&queue, p] { sinusoid_embedding(queue, p); };
  });
}

Call label_forwards(BenchArrays& a, const EmbeddingShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const LabelForward<T> p{.batch = s.batch,
                            .width = s.width,
                            .classes = s.classes,
                            .labels = a.values(labels(s)),
                            .table = a.input<T>(table(s)),
                            .x = a.input<T>(rows(s)),
                            .y = a.output<T>("y", rows(s))};
    return [&queue, p] { label_forward(queue, p); };
  });
}

Call label_backwards(BenchArrays& a, const EmbeddingShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const LabelBackward<T> p{.batch = s.batch,
                             .width = s.width,
                             .classes = s.classes,
                             .labels = a.values(labels(s)),
                             .dy = a.input<T>(rows(s)),
                             .dtable = a.output<acc_t<T>>("dtable", table(s))};
    return [&queue, p] { label_backward(queue, p); };
  });
}

}  // namespace

void bench_embedding(BenchList& list) {
  const EmbeddingShape checked = kEmbeddingCases[3];
  EmbeddingShape timed = kEmbeddingPaper;
  timed.batch = list.scaled(timed.batch);
  const std::string row = concat("b", timed.batch, " d", timed.width);
  const auto add = [&](const char* call, const std::string& shape, const Work& work,
                       Call (*make)(BenchArrays&, const EmbeddingShape&)) {
    list.add("embedding", call, shape, kEmbeddingTolerance, work, make, checked, timed);
  };
  add("sinusoid", row, sinusoid_work(timed, list.compute), sinusoid);
  add("label forward", row, label_forward_work(timed, list.compute), label_forwards);
  add("label backward", row, label_backward_work(timed, list.compute), label_backwards);
}

}  // namespace fm
