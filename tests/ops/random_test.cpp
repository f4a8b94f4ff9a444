#include "kernels/base/rng.h"
#include "kernels/random/random_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

template <class R, class Q>
Values noise(Q& queue, const RandomShape& shape, std::int64_t first_image = 0,
             std::uint64_t seed = 7, std::uint32_t stream = stream::sampling) {
  Array<R, Q> out(queue, shape.images * shape.pixels);
  normal_fill(queue, NormalFill<R>{shape.images, shape.pixels, first_image, seed, stream, out});
  return out.values();
}

Values image_of(const Values& all, std::int64_t image, std::int64_t pixels) {
  const auto begin = all.begin() + image * pixels;
  return Values(begin, begin + pixels);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("random: an image's noise depends on its number, not on how many are asked for") {
    for (std::int64_t pixels : {7, 784, 9000}) {
      const Values five = noise<float>(cpu_queue(), {5, pixels});
      const Values one = noise<float>(cpu_queue(), {1, pixels}, 3);
      CHECK(image_of(five, 3, pixels) == one);
      CHECK(image_of(five, 2, pixels) != one);
      // Nor on the image's size, as far as both reach.
      const Values larger = noise<float>(cpu_queue(), {1, pixels + 5}, 3);
      CHECK(image_of(larger, 0, pixels) == one);
    }
  }

  TEST_CASE("random: the values are those of normal4") {
    const Values got = noise<float>(cpu_queue(), {2, 6}, 40);
    for (std::uint32_t image : {40, 41})
      for (std::uint32_t element = 0; element < 6; ++element) {
        const Normal4 n = normal4({7, stream::sampling, 0, image}, element / 4);
        const float z[] = {n.z0, n.z1, n.z2, n.z3};
        CHECK(got[(image - 40) * 6 + element] == z[element % 4]);
      }
  }

  TEST_CASE("random: double gets the float values; seed and stream matter") {
    for (const RandomShape& shape : kRandomCases) {
      const Values f = noise<float>(cpu_queue(), shape);
      CHECK(noise<double>(cpu_queue(), shape) == f);
      CHECK(noise<float>(cpu_queue(), shape, 0, 8) != f);
      CHECK(noise<float>(cpu_queue(), shape, 0, 7, stream::noise) != f);
    }
  }

  TEST_CASE("random: the number of threads does not matter") {
    CpuQueue one(1), three(3);
    CHECK(noise<float>(one, {3, 10000}) == noise<float>(three, {3, 10000}));
  }

  TEST_CASE("random: shapes outside the contract are refused") {
    CHECK_THROWS_AS(noise<float>(cpu_queue(), {1, 0}), Error);
    CHECK_THROWS_AS(noise<float>(cpu_queue(), {1, 4}, -1), Error);
    CHECK_THROWS_AS(noise<float>(cpu_queue(), {1, 4}, std::int64_t{1} << 32), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("random: CUDA has the bits of the CPU") {
    auto check = [](const RandomShape& shape, std::int64_t first_image) {
      CAPTURE(shape.images);
      CAPTURE(shape.pixels);
      const Results cpu = {{"noise", noise<float>(cpu_queue(), shape, first_image)}};
      const Results gpu = {{"noise", noise<float>(cuda_queue(), shape, first_image)}};
      expect_same_bits(gpu, cpu);
    };
    for (const RandomShape& shape : kRandomCases) check(shape, 0);
    check(kRandomPaper, (std::int64_t{1} << 32) - 64);
    check({1, 1 << 22}, 1);
  }
}
#endif

}  // namespace fm::test
