#include "kernels/base/rng.h"

#include <algorithm>
#include <vector>

#include "tests/support/expect.h"

namespace fm::test {
namespace {

double ulps(float got, double want) {
  int exponent = 0;
  std::frexp(want, &exponent);
  return std::fabs(got - want) / std::ldexp(1.0, exponent - 24);
}

bool is_permutation_of(const Permutation& order, std::uint64_t n) {
  std::vector<bool> seen(n);
  for (std::uint64_t i = 0; i < n; ++i) {
    const std::uint64_t at = order(i);
    if (at >= n || seen[at]) return false;
    seen[at] = true;
  }
  return true;
}

void check_philox(Random4 counter, std::uint32_t key0, std::uint32_t key1, Random4 want) {
  const Random4 got = philox(counter, key0, key1);
  CHECK(got.x0 == want.x0);
  CHECK(got.x1 == want.x1);
  CHECK(got.x2 == want.x2);
  CHECK(got.x3 == want.x3);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("rng: Philox4x32-10 gives the published known answers") {
    constexpr std::uint32_t ones = 0xffffffffu;
    check_philox({0, 0, 0, 0}, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
    check_philox({ones, ones, ones, ones}, ones, ones,
                 {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
    check_philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u,
                 {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
  }

  TEST_CASE("rng: log, exp, sine and cosine are accurate to 2 ulp") {
    double log_error = 0, exp_error = 0, trig_error = 0;
    for (std::uint32_t k = 1; k <= 1u << 24; k += k < 4096 || k > (1u << 24) - 4096 ? 1 : 61) {
      const float u = static_cast<float>(k) * 0x1p-24f;
      log_error = std::max(log_error, ulps(exact::log(u), std::log(static_cast<double>(u))));
      const float x = (u - 0.5f) * 160;
      exp_error = std::max(exp_error, ulps(exact::exp(x), std::exp(static_cast<double>(x))));
      const std::uint32_t turn = k - 1;
      const double angle = 2 * 3.14159265358979323846 * turn / (1 << 24);
      const exact::SinCos got = exact::sin_cos_of_turn(turn);
      // Off the exact multiples of a quarter turn, where libm's zero is a rounding error of pi.
      if (turn % (1u << 22) == 0) continue;
      trig_error = std::max(
          {trig_error, ulps(got.sine, std::sin(angle)), ulps(got.cosine, std::cos(angle))});
    }
    CHECK(log_error <= 2);
    CHECK(exp_error <= 2);
    CHECK(trig_error <= 2);
    CHECK(exact::log(1.0f) == 0);
    CHECK(exact::sin_cos_of_turn(1u << 22).sine == 1);
    CHECK(exact::sin_cos_of_turn(2u << 22).cosine == -1);
    CHECK(exact::sin_cos_of_turn(3u << 22).cosine == 0);
    CHECK(exact::sigmoid(0.0f) == 0.5f);
  }

  TEST_CASE("rng: uniforms cover their intervals exactly") {
    constexpr std::uint32_t last = 0xffffffffu;
    CHECK(uniform(0) == 0);
    CHECK(uniform(last) == 1 - 0x1p-24f);
    CHECK(uniform_above_zero(0) == 0x1p-24f);
    CHECK(uniform_above_zero(last) == 1);
    CHECK(uniform_open(0) == 0x1p-24f);
    CHECK(uniform_open(last) == 1 - 0x1p-24f);
  }

  TEST_CASE("rng: the vectorised normals have the bits of the plain ones") {
    const RandomKey key{0x0123456789abcdefULL, stream::noise, 5, 9};
    for (std::int64_t first : {0, 4, 1000}) {
      std::vector<float> fast(1003);
      fill_normals(key, first, 1003, fast.data());
      std::vector<float> plain(1004);
      for (std::int64_t i = 0; i < 1004; i += 4) {
        const Normal4 n = normal4(key, static_cast<std::uint32_t>((first + i) / 4));
        const float z[] = {n.z0, n.z1, n.z2, n.z3};
        std::copy_n(z, 4, plain.begin() + i);
      }
      CHECK(std::memcmp(fast.data(), plain.data(), fast.size() * sizeof(float)) == 0);
    }
  }

  // The numbers are fixed, so a passing test passes always; the bounds are 4.5 standard deviations.
  TEST_CASE("rng: normals have the moments and tails of a normal distribution") {
    constexpr std::int64_t n = 1 << 21;
    std::vector<float> z(n);
    fill_normals({42, stream::sampling, 0, 0}, 0, n, z.data());
    double sum = 0, square = 0, cube = 0, fourth = 0, neighbours = 0, tail2 = 0, tail4 = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = z[i];
      sum += x;
      square += x * x;
      cube += x * x * x;
      fourth += x * x * x * x;
      neighbours += i > 0 ? x * z[i - 1] : 0;
      tail2 += std::fabs(x) > 2;
      tail4 += std::fabs(x) > 4;
    }
    const double sigma = 4.5 / std::sqrt(static_cast<double>(n));
    CHECK(std::fabs(sum / n) <= sigma);
    CHECK(std::fabs(square / n - 1) <= sigma * std::sqrt(2.0));
    CHECK(std::fabs(cube / n) <= sigma * std::sqrt(15.0));
    CHECK(std::fabs(fourth / n - 3) <= sigma * std::sqrt(96.0));
    CHECK(std::fabs(neighbours / n) <= sigma);
    for (const auto& [seen, bound] : {std::pair{tail2, 2.0}, std::pair{tail4, 4.0}}) {
      const double expected = n * std::erfc(bound / std::sqrt(2.0));
      CHECK(std::fabs(seen - expected) <= 4.5 * std::sqrt(expected));
    }
  }

  TEST_CASE("rng: uniforms fill 256 bins evenly, in every word and between neighbouring items") {
    constexpr int bins = 256, draws = 1 << 18;
    std::vector<double> counts[6];
    for (auto& c : counts) c.assign(bins, 0);
    for (std::uint32_t i = 0; i < draws; ++i) {
      const Random4 w = random4({7, stream::time, 3, i}, 0);
      const Random4 other = random4({7, stream::time, 3, i}, 1);
      const std::uint32_t words[] = {w.x0, w.x1, w.x2, w.x3};
      for (int k = 0; k < 4; ++k) counts[k][static_cast<int>(uniform(words[k]) * bins)] += 1;
      // 16 x 16 cells of a pair: within a group, and across groups of an item.
      counts[4][(w.x0 >> 28) * 16 + (w.x1 >> 28)] += 1;
      counts[5][(w.x0 >> 28) * 16 + (other.x0 >> 28)] += 1;
    }
    for (const auto& c : counts) {
      double chi_square = 0;
      for (double seen : c) chi_square += (seen - draws / bins) * (seen - draws / bins);
      chi_square /= draws / bins;
      // Mean 255, standard deviation sqrt(510) = 22.6.
      CHECK(std::fabs(chi_square - (bins - 1)) <= 4.5 * 22.6);
    }
  }

  TEST_CASE("rng: streams, steps, items and seeds give different numbers") {
    const RandomKey base{1, stream::noise, 2, 3};
    const RandomKey others[] = {
        {2, stream::noise, 2, 3}, {1 + (std::uint64_t{1} << 32), stream::noise, 2, 3},
        {1, stream::time, 2, 3},  {1, stream::noise, 3, 3},
        {1, stream::noise, 2, 4}, {1, stream::noise, 3, 2}};
    for (const RandomKey& other : others) CHECK(random4(base, 0).x0 != random4(other, 0).x0);
    CHECK(random4(base, 0).x0 != random4(base, 1).x0);
  }

  TEST_CASE("rng: the order of an epoch is a permutation, and another one each epoch") {
    for (std::uint64_t n : {1, 2, 3, 4, 5, 7, 16, 17, 1000, 60000}) {
      CAPTURE(n);
      for (std::uint64_t epoch : {0, 1, 49}) CHECK(is_permutation_of({n, 11, epoch}, n));
      if (n < 7) continue;
      std::uint64_t same_epoch = 0, same_seed = 0;
      const Permutation a(n, 11, 0), b(n, 11, 1), c(n, 12, 0);
      for (std::uint64_t i = 0; i < n; ++i) {
        same_seed += a(i) == b(i);
        same_epoch += a(i) == c(i);
      }
      // The number of agreements is Poisson with mean 1.
      CHECK(same_seed <= 6);
      CHECK(same_epoch <= 6);
    }
  }

  TEST_CASE("rng: over many epochs an image comes at every place equally often") {
    constexpr int n = 60, epochs = 6000;
    std::vector<double> place(n, 0), follower(n, 0);
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const Permutation order(n, 5, static_cast<std::uint64_t>(epoch));
      place[order(17)] += 1;
      follower[(order(18) + n - order(17)) % n] += 1;
    }
    double by_place = 0, by_follower = 0;
    CHECK(follower[0] == 0);
    for (int i = 0; i < n; ++i) {
      by_place += std::pow(place[i] - epochs / n, 2) / (epochs / n);
      const double expected = epochs / (n - 1.0);
      if (i > 0) by_follower += std::pow(follower[i] - expected, 2) / expected;
    }
    CHECK(std::fabs(by_place - (n - 1)) <= 4.5 * std::sqrt(2.0 * (n - 1)));
    CHECK(std::fabs(by_follower - (n - 2)) <= 4.5 * std::sqrt(2.0 * (n - 2)));
  }

  TEST_CASE("rng: a permutation of 2^32 elements stays in range and walks nothing twice") {
    const std::uint64_t n = std::uint64_t{1} << 32;
    const Permutation order(n, 3, 4);
    std::vector<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 4096; ++i) seen.push_back(order(i * (n / 4096)));
    std::sort(seen.begin(), seen.end());
    CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
    CHECK(seen.back() > n / 2);
  }
}

}  // namespace fm::test
