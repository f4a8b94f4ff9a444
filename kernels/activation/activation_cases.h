// Sizes, tolerances and work of silu.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/base/cases.h"

namespace fm {

// 1 and 7: fewer than one wide access; 1003 and 65537: a tail after many.
inline constexpr std::int64_t kSiluCases[] = {1, 7, 8, 1003, 65537};
inline constexpr std::int64_t kSiluPaper = 256 * 128;  // the time embedding of a batch

// fp32: __expf and a division, some ulps of 2^-24. fp16 and bf16: one rounding of the result, half
// an ulp: at most 2^-11 and 2^-8 of each element.
inline constexpr Tolerance kSiluTolerance = {1e-6, 5e-4, 4e-3};

inline Work silu_forward_work(std::int64_t count, DType t) {
  const double elements = static_cast<double>(count);
  return {2 * elements * static_cast<double>(size_of(t)), 3 * elements, 2 * elements};
}
inline Work silu_backward_work(std::int64_t count, DType t) {
  const double elements = static_cast<double>(count);
  return {3 * elements * static_cast<double>(size_of(t)), 7 * elements, 2 * elements};
}

}  // namespace fm
