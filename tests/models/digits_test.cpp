#include "models/digits.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "engine/io/md5.h"

namespace fm::test {
namespace {

constexpr std::int64_t kPixels = kDigitSide * kDigitSide;

struct Digits {
  std::vector<std::uint8_t> pixels, labels;
  Digits(std::uint64_t seed, std::int64_t first, std::int64_t count)
      : pixels(static_cast<std::size_t>(count * kPixels)), labels(static_cast<std::size_t>(count)) {
    draw_digits(seed, first, count, pixels.data(), labels.data());
  }
  std::string image(std::int64_t i) const {
    return {pixels.begin() + i * kPixels, pixels.begin() + (i + 1) * kPixels};
  }
};

using Image = std::array<double, kPixels>;

std::vector<Image> class_means(const Digits& digits) {
  std::vector<Image> means(kDigitClasses, Image{});
  const double count = static_cast<double>(digits.labels.size()) / kDigitClasses;
  for (std::size_t i = 0; i < digits.pixels.size(); ++i)
    means[digits.labels[i / kPixels]][i % kPixels] += digits.pixels[i] / count;
  return means;
}

int nearest(const std::vector<Image>& means, const std::uint8_t* pixels) {
  std::array<double, kDigitClasses> distance{};
  for (int d = 0; d < kDigitClasses; ++d)
    for (std::int64_t i = 0; i < kPixels; ++i)
      distance[d] += (means[d][i] - pixels[i]) * (means[d][i] - pixels[i]);
  return static_cast<int>(std::min_element(distance.begin(), distance.end()) - distance.begin());
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("digits: the data set is what it was, to the byte") {
    const Digits train(kDigitsSeed, 0, 1000), test(kDigitsSeed, kDigitsTrain, 1000);
    const auto md5 = [](const std::vector<std::uint8_t>& bytes) {
      return md5_of({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    };
    CHECK(md5(train.pixels) == "8c3654c68b32f971c59f256f732d6dce");
    CHECK(md5(train.labels) == "70e9644b6e7ee229569f822bad4c1d84");
    CHECK(md5(test.pixels) == "5a2581815f39e589a25b970b0173af4d");
    CHECK(md5(test.labels) == "b688332f80f78510898dd04c3723544f");
  }

  TEST_CASE("digits: an image depends on seed and index alone") {
    const Digits all(5, 100, 60), part(5, 137, 3), other(6, 100, 60);
    for (int i = 0; i < 3; ++i) {
      CHECK(part.image(i) == all.image(37 + i));
      CHECK(part.labels[i] == all.labels[37 + i]);
    }
    CHECK(other.pixels != all.pixels);
    CHECK(other.labels != all.labels);
  }

  TEST_CASE("digits: every ten indices hold every label, in changing order") {
    const Digits digits(kDigitsSeed, 0, 2000);
    std::set<std::vector<std::uint8_t>> orders;
    for (int block = 0; block < 200; ++block) {
      std::vector<std::uint8_t> labels(digits.labels.begin() + 10 * block,
                                       digits.labels.begin() + 10 * block + 10);
      orders.insert(labels);
      std::sort(labels.begin(), labels.end());
      CHECK(labels == std::vector<std::uint8_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
    }
    CHECK(orders.size() > 190);
  }

  TEST_CASE("digits: inked, centred, inside the picture, all different") {
    const std::int64_t count = 2000;
    const Digits digits(kDigitsSeed, 0, count);
    std::set<std::string> seen;
    double ink = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      seen.insert(digits.image(i));
      double mass = 0, x = 0, y = 0, edge = 0;
      for (std::int64_t p = 0; p < kPixels; ++p) {
        const double value = digits.pixels[i * kPixels + p];
        const std::int64_t row = p / kDigitSide, col = p % kDigitSide;
        mass += value, x += value * col, y += value * row;
        if (row == 0 || col == 0 || row == kDigitSide - 1 || col == kDigitSide - 1) edge += value;
      }
      ink += mass / 255 / kPixels;
      INFO("image ", i, ", a ", int(digits.labels[i]));
      CHECK(mass > 255 * 15);
      CHECK(std::fabs(x / mass - 13.5) < 2);
      CHECK(std::fabs(y / mass - 13.5) < 2);
      CHECK(edge < 0.05 * mass);
    }
    CHECK(seen.size() == count);
    CHECK(std::fabs(ink / count - 0.13) < 0.01);  // MNIST: 0.1307
  }

  TEST_CASE("digits: the nearest class mean of the train set names the test set") {
    const std::int64_t count = 2000;
    const std::vector<Image> means = class_means(Digits(kDigitsSeed, 0, count));
    const Digits test(kDigitsSeed, kDigitsTrain, count);
    std::int64_t right = 0;
    for (std::int64_t i = 0; i < count; ++i)
      right += nearest(means, test.pixels.data() + i * kPixels) == test.labels[i];
    CHECK(right > count * 90 / 100);
  }
}

}  // namespace fm::test
