#include <algorithm>

#include "kernels/base/rng.h"
#include "kernels/base/simd.h"

namespace fm {
namespace {

constexpr int kGroups = 64;  // a block's groups of four elements

// normal4 for kGroups groups. The square roots stand alone, since their domain check (errno) keeps
// a loop from being vectorised.
FM_SIMD void normal_block(const RandomKey& key, std::uint32_t first_group, float* out) {
  float radius[2 * kGroups], cosine[2 * kGroups], sine[2 * kGroups];
  std::uint32_t angle[2 * kGroups];
  for (int g = 0; g < kGroups; ++g) {
    const Random4 words = random4(key, first_group + static_cast<std::uint32_t>(g));
    radius[g] = radius_squared(words.x0);
    angle[g] = words.x1;
    radius[kGroups + g] = radius_squared(words.x2);
    angle[kGroups + g] = words.x3;
  }
  for (int i = 0; i < 2 * kGroups; ++i) {
    const exact::SinCos at = exact::sin_cos_of_turn(angle[i] >> 8);
    cosine[i] = at.cosine;
    sine[i] = at.sine;
  }
  for (int i = 0; i < 2 * kGroups; ++i) radius[i] = exact::sqrt(radius[i]);
  for (int g = 0; g < kGroups; ++g) {
    out[4 * g] = exact::mul(radius[g], cosine[g]);
    out[4 * g + 1] = exact::mul(radius[g], sine[g]);
    out[4 * g + 2] = exact::mul(radius[kGroups + g], cosine[kGroups + g]);
    out[4 * g + 3] = exact::mul(radius[kGroups + g], sine[kGroups + g]);
  }
}

}  // namespace

void fill_normals(const RandomKey& key, std::int64_t first, std::int64_t count, float* out) {
  float block[4 * kGroups];
  for (std::int64_t at = 0; at < count; at += 4 * kGroups) {
    normal_block(key, static_cast<std::uint32_t>((first + at) / 4), block);
    std::copy_n(block, std::min<std::int64_t>(4 * kGroups, count - at), out + at);
  }
}

}  // namespace fm
