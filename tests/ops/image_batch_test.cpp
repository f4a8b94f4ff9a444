#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "kernels/image_batch/image_batch_cases.h"
#include "kernels/image_batch/image_batch_sample.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Data {
  ImageBatchShape shape;
  std::int64_t pixels;  // an image
  Values data, labels;

  explicit Data(const ImageBatchShape& s)
      : shape(s), pixels(std::int64_t{s.channels} * s.height * s.width) {
    std::mt19937 engine(3);
    for (std::int64_t i = 0; i < s.images * pixels; ++i) data.push_back(engine() % 256);
    for (std::int64_t i = 0; i < s.images; ++i) labels.push_back(engine() % 10);
  }

  // The pixel of an image, as batches hold it; paper outside.
  double at(std::int64_t image, int channel, int y, int x) const {
    if (y < 0 || y >= shape.height || x < 0 || x >= shape.width) return -1;
    const std::int64_t i =
        ((image * shape.channels + channel) * shape.height + y) * shape.width + x;
    return data[static_cast<std::size_t>(i)] / 127.5 - 1;
  }
};

template <class R, class Q>
Results batch(Q& queue, const Data& d, std::uint64_t step, std::uint64_t seed = 7) {
  const ImageBatchShape& s = d.shape;
  Array<std::uint8_t, Q> data(queue, d.data), labels(queue, d.labels);
  Array<R, Q> x(queue, s.batch * d.pixels);
  Array<std::int32_t, Q> batch_labels(queue, s.batch);
  Array<StepState, Q> state(queue, 1);
  StepState host;
  host.step = step;
  upload(queue, state.data(), &host, sizeof host);
  image_batch(queue, ImageBatch<R>{.batch = s.batch,
                                   .images = s.images,
                                   .channels = s.channels,
                                   .height = s.height,
                                   .width = s.width,
                                   .data = data,
                                   .labels = labels,
                                   .state = state,
                                   .seed = seed,
                                   .max_shift = s.max_shift,
                                   .x = x,
                                   .batch_labels = batch_labels});
  return {{"x", x.values()}, {"labels", batch_labels.values()}};
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("image_batch: images in the epoch's order, moved, with their labels") {
    for (const ImageBatchShape& shape : kImageBatchCases) {
      const Data d(shape);
      const auto per_epoch = static_cast<std::uint64_t>(shape.images / shape.batch);
      for (std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1}, per_epoch + 1}) {
        const Results r = batch<double>(cpu_queue(), d, step);
        const Permutation order(static_cast<std::uint64_t>(shape.images), 7, step / per_epoch);
        double error = 0;
        std::size_t i = 0;
        for (int b = 0; b < shape.batch; ++b) {
          const auto image = static_cast<std::int64_t>(
              order(step % per_epoch * static_cast<std::uint64_t>(shape.batch) +
                    static_cast<std::uint64_t>(b)));
          const ImageShift shift = image_shift(shape.max_shift, 7, step, b);
          CHECK(r.at("labels")[b] == d.labels[image]);
          for (int c = 0; c < shape.channels; ++c)
            for (int y = 0; y < shape.height; ++y)
              for (int x = 0; x < shape.width; ++x, ++i)
                error = std::max(error, std::fabs(r.at("x")[i] -
                                                  d.at(image, c, y - shift.down, x - shift.right)));
        }
        CHECK(error < 1e-12);
      }
    }
  }

  TEST_CASE("image_batch: every shift is as likely as any other") {
    std::map<std::pair<int, int>, int> seen;
    const int draws = 25000;
    for (int i = 0; i < draws; ++i) {
      const ImageShift s = image_shift(2, 5, static_cast<std::uint64_t>(i / 100), i % 100);
      ++seen[{s.down, s.right}];
    }
    CHECK(seen.size() == 25);
    for (const auto& [shift, count] : seen) {
      CHECK(std::abs(shift.first) <= 2);
      CHECK(std::abs(shift.second) <= 2);
      CHECK(std::abs(count - 1000) <= 4.5 * std::sqrt(1000 * 0.96));  // standard deviations
    }
    CHECK(image_shift(0, 5, 1, 1).down == 0);
  }

  TEST_CASE("image_batch: float and double see the same batch; steps and seeds differ") {
    for (const ImageBatchShape& shape : kImageBatchCases) {
      const Data d(shape);
      expect_close(batch<float>(cpu_queue(), d, 3), batch<double>(cpu_queue(), d, 3), 1e-7);
    }
    const Data d(kImageBatchCases[3]);
    const Values base = batch<float>(cpu_queue(), d, 0).at("x");
    CHECK(batch<float>(cpu_queue(), d, 1).at("x") != base);
    CHECK(batch<float>(cpu_queue(), d, 0, 8).at("x") != base);
    CpuQueue one(1), three(3);
    expect_same_bits(batch<float>(one, d, 2), batch<float>(three, d, 2));
  }

  TEST_CASE("image_batch: refuses a batch larger than the set and a shift past the edge") {
    CHECK_THROWS_AS(batch<float>(cpu_queue(), Data({4, 3, 1, 5, 5, 0}), 0), Error);
    CHECK_THROWS_AS(batch<float>(cpu_queue(), Data({1, 3, 1, 5, 7, 5}), 0), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("image_batch: CUDA makes the CPU's batch, to the last bit") {
    for (const ImageBatchShape& shape : kImageBatchCases) {
      const Data d(shape);
      for (std::uint64_t step : {0, 1, 1000})
        expect_same_bits(batch<float>(cuda_queue(), d, step, 0xfedcba9876543210ULL),
                         batch<float>(cpu_queue(), d, step, 0xfedcba9876543210ULL));
    }
    ImageBatchShape training = kImageBatchClassifier;
    training.images = 3000;
    const Data d(training);
    expect_same_bits(batch<float>(cuda_queue(), d, 22), batch<float>(cpu_queue(), d, 22));
  }
}
#endif

}  // namespace fm::test
