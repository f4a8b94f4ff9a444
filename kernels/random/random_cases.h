// Shapes and work of random.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/random/random.h"

namespace fm {

struct RandomShape {
  std::int64_t images, pixels;
};

inline constexpr RandomShape kRandomCases[] = {
    {1, 1}, {3, 7}, {2, 1000}, {5, 784}, {1, 3 * 33 * 33},
};
inline constexpr RandomShape kRandomPaper = {64, 784};

// Per normal: a quarter of a Philox (10 rounds of 2 multiplications and 4 additions or exclusive
// ors), half a logarithm, half a sine and cosine. No tolerance: the bits agree everywhere.
inline Work normal_fill_work(const RandomShape& s) {
  const double elements = static_cast<double>(s.images) * static_cast<double>(s.pixels);
  return {4 * elements, 45 * elements, 0.5 * elements};
}

}  // namespace fm
