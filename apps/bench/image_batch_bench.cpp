#include "apps/bench/kernel_bench.h"
#include "kernels/image_batch/image_batch_cases.h"

namespace fm {
namespace {

Call batch(BenchArrays& a, const ImageBatchShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    const std::int64_t pixels = std::int64_t{s.channels} * s.height * s.width;
    std::vector<std::uint8_t> data(static_cast<std::size_t>(s.images * pixels));
    for (std::size_t i = 0; i < data.size(); ++i)
      data[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24);
    std::vector<std::uint8_t> labels(static_cast<std::size_t>(s.images));
    for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::uint8_t>(i % 10);
    const ImageBatch<R> p{.batch = s.batch,
                          .images = s.images,
                          .channels = s.channels,
                          .height = s.height,
                          .width = s.width,
                          .data = a.values(data),
                          .labels = a.values(labels),
                          .state = a.values(std::vector<StepState>(1)),
                          .seed = 7,
                          .max_shift = s.max_shift,
                          .x = a.output<R>("x", s.batch * pixels),
                          .batch_labels = a.scratch<std::int32_t>(s.batch)};
    return [&queue, p] { image_batch(queue, p); };
  });
}

}  // namespace

void bench_image_batch(BenchList& list) {
  const ImageBatchShape s = kImageBatchClassifier;
  // The bits agree: the tolerance is for the double that the reference computes in.
  list.add("image_batch", "gather", concat("b", s.batch, " px", s.height * s.width),
           Tolerance{1e-6, 1e-6, 1e-6}, image_batch_work(s), batch, kImageBatchCases[3], s);
}

}  // namespace fm
