#include "models/nearest.h"

#include <cmath>

#include "models/classifier.h"
#include "tests/support/cuda.h"
#include "tests/support/models.h"

namespace fm::test {

TEST_SUITE("cpu") {
  TEST_CASE("nearest: copies are found, at distance zero") {
    const DataSet data = few_digits(5000);
    const std::vector<NearestImage> found =
        nearest_images(cpu_queue(), data, scaled_images(data, 1990, 20));
    for (int i = 0; i < 20; ++i) {
      CHECK(found[i].index == 1990 + i);
      CHECK(found[i].distance < 1e-3);
    }
  }

  TEST_CASE("nearest: as a search in double finds it, on any number of threads") {
    const DataSet data = few_digits(2100);  // a piece and a part of one
    const Values noise = normals(5 * 784, 1, 0.7);
    std::vector<float> samples(noise.begin(), noise.end());
    CpuQueue one(1), three(3);
    const std::vector<NearestImage> found = nearest_images(one, data, samples);
    const std::vector<NearestImage> again = nearest_images(three, data, samples);
    const std::vector<float> images = scaled_images(data, 0, data.count);
    for (int s = 0; s < 5; ++s) {
      double best = INFINITY;
      std::int64_t index = -1;
      for (std::int64_t i = 0; i < data.count; ++i) {
        double square = 0;
        for (std::int64_t p = 0; p < 784; ++p) {
          const double x = std::clamp(samples[s * 784 + p], -1.0f, 1.0f);
          square += std::pow(images[i * 784 + p] - x, 2);
        }
        if (square < best) best = square, index = i;
      }
      CHECK(found[s].index == index);
      CHECK(found[s].distance == doctest::Approx(std::sqrt(best)).epsilon(1e-5));
      CHECK(again[s].index == found[s].index);
      CHECK(again[s].distance == found[s].distance);
    }
  }

  TEST_CASE("nearest: the lower index of equals; nothing is near a NaN") {
    DataSet data = few_digits(3);
    std::copy_n(data.pixels.begin(), 784, data.pixels.begin() + 2 * 784);
    std::vector<float> samples = scaled_images(data, 2, 1);
    CHECK(nearest_images(cpu_queue(), data, samples)[0].index == 0);
    samples[5] = NAN;
    CHECK(nearest_images(cpu_queue(), data, samples)[0].index == -1);
    samples.pop_back();
    CHECK_THROWS_AS(nearest_images(cpu_queue(), data, samples), Error);
    CHECK(nearest_images(cpu_queue(), data, {}).empty());
  }
}

}  // namespace fm::test
