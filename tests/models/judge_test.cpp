#include "models/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/cuda.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

constexpr std::int64_t kCount = 1000;  // samples judged
constexpr std::int64_t kPixels = 784;
using Images = std::vector<float>;

const DataSet& split(Split which) {
  static const DataSet train = digits_data(cpu_queue(), Split::train);
  static const DataSet test = digits_data(cpu_queue(), Split::test);
  return which == Split::train ? train : test;
}

// A classifier of the built-in digits, trained for two epochs, and a judge that looks through it.
struct Court {
  Queue queue;
  std::unique_ptr<Classifier> classifier;
  Judge judge;

  Court(const Queue& q, const DataSet& lessons)
      : queue(q),
        classifier(train_classifier(queue, lessons, {.epochs = 2, .on_epoch = {}})),
        judge(queue, *classifier, split(Split::train), split(Split::test), kCount) {}
};
const Court& court() {
  static const Court on_cpu(cpu_queue(), split(Split::train));
  return on_cpu;
}

Images repeated(const Images& few) {
  Images images;
  while (images.size() < kCount * kPixels) images.insert(images.end(), few.begin(), few.end());
  images.resize(kCount * kPixels);
  return images;
}

Images noise(double scale = 1) {
  const Values values = normals(kCount * kPixels, 5, scale);
  return Images(values.begin(), values.end());
}

// The mean of each pixel's 3 x 3 neighbours, `times` over.
Images blurred(Images images, int times) {
  for (; times > 0; --times) {
    const Images from = images;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(images.size()); ++i) {
      const std::int64_t y = i % kPixels / 28, x = i % 28;
      float sum = 0;
      int count = 0;
      for (std::int64_t dy = -1; dy <= 1; ++dy)
        for (std::int64_t dx = -1; dx <= 1; ++dx)
          if (y + dy >= 0 && y + dy < 28 && x + dx >= 0 && x + dx < 28)
            sum += from[static_cast<std::size_t>(i + dy * 28 + dx)], ++count;
      images[static_cast<std::size_t>(i)] = sum / static_cast<float>(count);
    }
  }
  return images;
}

Images stretched(Images images, float factor) {
  for (float& x : images) x *= factor;
  return images;
}

// The pixels of each digit in an order of its own, or all in the same one.
Images shuffled(bool same_order) {
  Images images = scaled_images(split(Split::train), 5000, kCount);
  std::mt19937 engine(1);
  for (auto image = images.begin(); image != images.end(); image += kPixels) {
    if (same_order) engine.seed(1);
    std::shuffle(image, image + kPixels, engine);
  }
  return images;
}

Images class_means() {
  const std::int64_t count = 10000;  // 1 000 a class
  const Images images = scaled_images(split(Split::train), 0, count);
  Images means(10 * kPixels);
  for (std::size_t i = 0; i < images.size(); ++i)
    means[split(Split::train).labels[i / kPixels] * kPixels + i % kPixels] += images[i] / 1000;
  return repeated(means);
}

// Real digits with labels below `classes`.
Images of_classes(int classes) {
  Images images;
  for (std::int64_t i = 0; images.size() < kCount * kPixels; ++i) {
    if (split(Split::train).labels[static_cast<std::size_t>(i)] >= classes) continue;
    const Images one = scaled_images(split(Split::train), i, 1);
    images.insert(images.end(), one.begin(), one.end());
  }
  return images;
}

// The first `share` of the images are noise, the others real.
Images with_noise(double share) {
  Images images = scaled_images(split(Split::train), 3000, kCount);
  const Images other = noise();
  std::copy_n(other.begin(), static_cast<std::int64_t>(share * kCount) * kPixels, images.begin());
  return images;
}

void expect_pass(const char* what, const Images& images) {
  const Verdict v = court().judge(images);
  INFO(what, ": ", v.sentence);
  CHECK(v.passes);
  CHECK(v.sentence.starts_with("Digits: "));
}
// The samples must fail, by a clear margin.
Verdict expect_failure(const char* what, const Images& images, double margin = 0.8) {
  const Verdict v = court().judge(images);
  INFO(what, ": ", v.sentence);
  CHECK(!v.passes);
  CHECK(v.margin < margin);
  CHECK(v.sentence.starts_with("Not digits: fails on "));
  return v;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("judge: its classifier knows the digits") {
    CHECK(accuracy(court().queue, *court().classifier, split(Split::test)) >= 0.985);
  }

  TEST_CASE("judge: real digits pass") {
    expect_pass("train", scaled_images(split(Split::train), 20000, kCount));
    expect_pass("test", scaled_images(split(Split::test), 0, kCount));
    const Verdict v = court().judge(scaled_images(split(Split::test), 4000, kCount));
    CHECK(v.margin > 1.5);
    for (const std::size_t i : {0, 4}) CHECK(std::fabs(v.marks[i].position - 1) < 0.05);
  }

  TEST_CASE("judge: noise fails, blurred and stretched as well") {
    const Verdict v = expect_failure("noise", noise(), 0.5);
    CHECK(std::fabs(v.marks[0].position) < 0.1);
    CHECK(std::fabs(v.marks[4].position) < 0.1);
    expect_failure("weak noise", noise(0.2), 0.5);
    expect_failure("strong noise", noise(10), 0.5);
    for (int times : {1, 3})
      for (float factor : {1.0f, 3.0f, 6.0f})
        expect_failure("blurred noise", stretched(blurred(noise(), times), factor));
  }

  TEST_CASE("judge: constant images fail") {
    for (float value : {-1.0f, -0.5f, 0.0f, 1.0f})
      expect_failure("constant", Images(kCount * kPixels, value), 0.5);
  }

  TEST_CASE("judge: digits with shuffled pixels fail") {
    expect_failure("each its own order", shuffled(false), 0.5);
    expect_failure("one order", shuffled(true), 0.5);
  }

  TEST_CASE("judge: few images repeated fail, however good") {
    const Verdict means = expect_failure("class means", class_means(), 0.5);
    CHECK(means.figures.variety < 0.01);  // whatever its other figures are
    const DataSet& train = split(Split::train);
    expect_failure("one digit", repeated(scaled_images(train, 7, 1)), 0.5);
    // Each label once in ten.
    expect_failure("one of each class", repeated(scaled_images(train, 10, 10)), 0.5);
  }

  TEST_CASE("judge: digits of some classes only fail") {
    expect_failure("three classes", of_classes(3), 0.5);
    const Verdict v = expect_failure("nine classes", of_classes(9), 0.5);
    CHECK(v.figures.recognised > 0.9);
    CHECK(v.marks[1].margin == v.margin);  // by the class that is missing
  }

  TEST_CASE("judge: digits under much noise fail by their distance, recognised though they are") {
    Images images = scaled_images(split(Split::train), 20000, kCount);
    const Images over = noise(1.3);
    for (std::size_t i = 0; i < images.size(); ++i) images[i] += over[i];
    const Verdict v = expect_failure("digits and noise", images);
    for (const std::size_t i : {0, 1, 2, 3}) CHECK(v.marks[i].margin > 1);
    CHECK(v.marks[4].margin == v.margin);
  }

  TEST_CASE("judge: the bar lies at half digits and half noise") {
    expect_pass("a third is noise", with_noise(0.33));
    expect_failure("two thirds are noise", with_noise(0.67), 0.9);
    const Verdict half = court().judge(with_noise(0.5));
    INFO(half.sentence);
    // The mix's figures are computed from the anchors': here they are measured.
    CHECK(half.figures.recognised == doctest::Approx(half.marks[0].bar).epsilon(0.03));
    CHECK(half.figures.frechet == doctest::Approx(court().judge.frechet_bar()).epsilon(0.05));
  }

  TEST_CASE("judge: the rule's numbers are parameters") {
    const Court& c = court();
    const Judge strict(c.queue, *c.classifier, split(Split::train), split(Split::test), kCount,
                       {.noise_share = 0.1});
    CHECK(c.judge(with_noise(0.3)).passes);
    CHECK(!strict(with_noise(0.3)).passes);
    CHECK(strict(scaled_images(split(Split::train), 20000, kCount)).passes);
  }

  TEST_CASE("judge: values beyond the picture's are clamped, NaN is paper") {
    Images images = scaled_images(split(Split::train), 20000, kCount);
    const Verdict before = court().judge(images);
    for (float& x : images)
      if (x == 1) x = std::numeric_limits<float>::infinity();
      else if (x == -1) x = -1e30f;
    const Verdict same = court().judge(images);
    CHECK(same.figures.frechet == before.figures.frechet);
    CHECK(same.figures.not_finite == 0);
    for (int i = 0; i < 600; ++i) images[static_cast<std::size_t>(i * kPixels + i)] = NAN;
    const Verdict lost = expect_failure("600 with a NaN", images);
    CHECK(lost.figures.not_finite == 600);
    CHECK(lost.sentence.ends_with("600 images are not finite."));
  }

  TEST_CASE("judge: the same samples get the same verdict; other counts are refused") {
    const Images images = scaled_images(split(Split::train), 20000, kCount);
    CHECK(court().judge(images).sentence == court().judge(images).sentence);
    expect_fault(Fault::usage, "made for 1000 images",
                 [&] { court().judge(Images(10 * kPixels)); });
    expect_fault(Fault::usage, "as many as the train split holds", [&] {
      Judge(court().queue, *court().classifier, split(Split::train), split(Split::test), 60001);
    });
  }

  TEST_CASE("judge: a classifier that knows nothing is no judge") {
    const Queue queue = cpu_queue();
    Classifier blank({});
    Context context(queue, DType::f32);
    blank.params().materialise(context, ParamStore::Use::inference);
    blank.params().initialise(1);
    expect_fault(Fault::runtime, "cannot tell real images from noise",
                 [&] { Judge(queue, blank, split(Split::train), split(Split::test), kCount); });
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("judge: on CUDA, digits pass and noise fails") {
    if (small_effort()) return;  // its kernels are those of classifier_test
    const Court on_cuda(cuda_queue(), few_digits(10000));
    const Verdict digits = on_cuda.judge(scaled_images(split(Split::train), 20000, kCount));
    INFO(digits.sentence);
    CHECK(digits.passes);
    CHECK(!on_cuda.judge(noise()).passes);
    CHECK(!on_cuda.judge(class_means()).passes);
  }
}
#endif

}  // namespace fm::test
