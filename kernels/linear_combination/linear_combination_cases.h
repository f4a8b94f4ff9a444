// Sizes, tolerance and work of linear_combination.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/linear_combination/linear_combination.h"

namespace fm {

inline constexpr std::int64_t kLinearCombinationCases[] = {1, 7, 784, 1021, 50176};
inline constexpr std::int64_t kLinearCombinationPaper = 64 * 784;  // the samples of one batch

// Five products and four sums, each within half an ulp (6e-8).
inline constexpr Tolerance kLinearCombinationTolerance = {5e-7, 5e-7, 5e-7};

inline Work linear_combination_work(std::int64_t count, int terms, DType type) {
  const double elements = static_cast<double>(count);
  return {(terms + 1) * elements * static_cast<double>(size_of(type)), 2 * terms * elements, 0};
}

}  // namespace fm
