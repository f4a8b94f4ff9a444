// Shapes, tolerances and work of cross-entropy.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace fm {

struct CrossEntropyShape {
  std::int64_t rows;
  int classes;
};

// One class: the loss is zero. 33 and 1000: more classes than a warp has lanes. 8195 rows: every
// warp of the sum takes more than one row.
inline constexpr CrossEntropyShape kCrossEntropyCases[] = {
    {1, 1}, {1, 10}, {7, 3}, {19, 33}, {5, 1000}, {8195, 10},
};
inline constexpr CrossEntropyShape kCrossEntropyClassifier = {256, 10};

// An exponential is good to 2 ulps of 2^-24 and its argument, a difference of logits of a few
// units, to half an ulp of that: some 5e-7 of a probability.
inline constexpr Tolerance kCrossEntropyTolerance = {1e-6, 0, 0};

inline Work cross_entropy_forward_work(const CrossEntropyShape& s) {
  const double elements = static_cast<double>(s.rows) * s.classes;
  return {4 * elements + 4 * static_cast<double>(s.rows), 3 * elements,
          elements + static_cast<double>(s.rows)};
}
inline Work cross_entropy_backward_work(const CrossEntropyShape& s) {
  const double elements = static_cast<double>(s.rows) * s.classes;
  return {8 * elements + 4 * static_cast<double>(s.rows), 5 * elements, elements};
}

}  // namespace fm
