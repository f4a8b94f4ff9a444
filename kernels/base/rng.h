// Counter-based random numbers, the same bits on host and device.
//
// A number is a pure function of (seed, stream, step, item, element): no state, no order of calls.
// Philox4x32-10 turns each group of four elements into four words. Sources: Salmon, Moraes, Dror
// and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox); Box and Muller 1958
// (normals); Black and Rogaway 2002 (permutations of [0, n) by cycle walking).
#pragma once

#include <cstdint>

#include "kernels/base/exact_math.h"

namespace fm {

// What a number is for. Two uses with one stream would see the same numbers; checkpoints rely on
// the values, so append only.
namespace stream {
constexpr std::uint32_t initialization = 1;  // item: the parameter's number
constexpr std::uint32_t order = 2;           // step: the epoch
constexpr std::uint32_t noise = 3;           // item: the image's place in the batch
constexpr std::uint32_t time = 4;            // likewise
constexpr std::uint32_t label_drop = 5;      // likewise
constexpr std::uint32_t sampling = 6;        // item: the image's number
constexpr std::uint32_t digits = 7;          // item: the image's number
constexpr std::uint32_t shift = 8;           // item: the image's place in the batch
constexpr std::uint32_t resampling = 9;      // step: the resampling; item: the candidate
}  // namespace stream

struct RandomKey {
  std::uint64_t seed;
  std::uint32_t stream;  // from namespace stream
  std::uint32_t step;    // modulo 2^32; 0 where nothing repeats
  std::uint32_t item;    // image, parameter, ...
};

struct Random4 {
  std::uint32_t x0, x1, x2, x3;
};

// Ten rounds of Philox on a counter, with a key of two words.
FM_HOST_DEVICE Random4 philox(Random4 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = static_cast<std::uint64_t>(0xD2511F53u) * counter.x0;
    const std::uint64_t b = static_cast<std::uint64_t>(0xCD9E8D57u) * counter.x2;
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter.x1 ^ key0, static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter.x3 ^ key1, static_cast<std::uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Four words for elements 4 group .. 4 group + 3 of the key.
FM_HOST_DEVICE Random4 random4(const RandomKey& key, std::uint32_t group) {
  return philox({group, key.stream, key.item, key.step}, static_cast<std::uint32_t>(key.seed),
                static_cast<std::uint32_t>(key.seed >> 32));
}

// Uniform multiples of 2^-24 from a word's upper bits, every operation exact: in [0, 1), and in
// (0, 1] for a logarithm.
FM_HOST_DEVICE float uniform(std::uint32_t word) {
  return static_cast<float>(static_cast<std::int32_t>(word >> 8)) * 0x1p-24f;
}
FM_HOST_DEVICE float uniform_above_zero(std::uint32_t word) {
  return static_cast<float>(static_cast<std::int32_t>(word >> 8) + 1) * 0x1p-24f;
}
// Odd multiples of 2^-24: in (0, 1), symmetric about 1/2.
FM_HOST_DEVICE float uniform_open(std::uint32_t word) {
  return static_cast<float>(static_cast<std::int32_t>(word >> 9) * 2 + 1) * 0x1p-24f;
}

struct Normal2 {
  float z0, z1;
};

// Two independent standard normals from two words: radius sqrt(-2 log u), at most 5.77, and a
// uniform angle. They are products, so host code that adds to them takes them from fill_normals.
FM_HOST_DEVICE float radius_squared(std::uint32_t word) {
  return exact::mul(-2.0f, exact::log(uniform_above_zero(word)));
}
FM_HOST_DEVICE Normal2 normal2(std::uint32_t word0, std::uint32_t word1) {
  const float radius = exact::sqrt(radius_squared(word0));
  const exact::SinCos angle = exact::sin_cos_of_turn(word1 >> 8);
  return {exact::mul(radius, angle.cosine), exact::mul(radius, angle.sine)};
}

struct Normal4 {
  float z0, z1, z2, z3;
};

// Standard normals for elements 4 group .. 4 group + 3 of the key.
FM_HOST_DEVICE Normal4 normal4(const RandomKey& key, std::uint32_t group) {
  const Random4 words = random4(key, group);
  const Normal2 a = normal2(words.x0, words.x1), b = normal2(words.x2, words.x3);
  return {a.z0, a.z1, b.z0, b.z1};
}

// out[i] = normal of element first + i, on the host, vectorised; the bits of normal4. `first` is a
// multiple of 4.
void fill_normals(const RandomKey& key, std::int64_t first, std::int64_t count, float* out);

// A permutation of [0, n) drawn by (seed, epoch), 1 <= n <= 2^32: eight Feistel rounds on the
// smallest even number of bits that holds n, walked until the value falls below n (fewer
// than 4 steps on average).
class Permutation {
 public:
  FM_HOST_DEVICE Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch) : n_(n) {
    while ((std::uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
    mask_ = static_cast<std::uint32_t>((std::uint64_t{1} << half_bits_) - 1);
    const RandomKey key{seed, stream::order, static_cast<std::uint32_t>(epoch), 0};
    const Random4 a = random4(key, 0), b = random4(key, 1);
    const std::uint32_t words[kRounds] = {a.x0, a.x1, a.x2, a.x3, b.x0, b.x1, b.x2, b.x3};
    for (int round = 0; round < kRounds; ++round) round_keys_[round] = words[round];
  }

  FM_HOST_DEVICE std::uint64_t operator()(std::uint64_t i) const {
    std::uint32_t x = static_cast<std::uint32_t>(i);
    do x = shuffle(x);
    while (x >= n_);
    return x;
  }

 private:
  static constexpr int kRounds = 8;

  // All bits of the result depend on all bits of x. The constants are the odd ones of xxHash32.
  static FM_HOST_DEVICE std::uint32_t mix(std::uint32_t x) {
    x *= 0x85EBCA77u;
    x ^= x >> 15;
    x *= 0xC2B2AE3Du;
    return x ^ (x >> 16);
  }

  FM_HOST_DEVICE std::uint32_t shuffle(std::uint32_t x) const {
    std::uint32_t left = x >> half_bits_, right = x & mask_;
    for (int round = 0; round < kRounds; ++round) {
      const std::uint32_t next = left ^ (mix(right + round_keys_[round]) & mask_);
      left = right;
      right = next;
    }
    return (left << half_bits_) | right;
  }

  std::uint64_t n_;
  int half_bits_ = 1;
  std::uint32_t mask_;
  std::uint32_t round_keys_[kRounds];
};

}  // namespace fm
