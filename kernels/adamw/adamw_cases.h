// Shapes, tolerances and work of adamw.
#pragma once

#include "kernels/adamw/adamw.h"
#include "kernels/base/cases.h"

namespace fm {

inline constexpr std::int64_t kAdamWCases[] = {64, 448, 64 * 1001, 64 * 12345};
inline constexpr std::int64_t kAdamWPaper = 64 * 48609;  // the hybrid's 3 110 980 parameters

// Relative error of m, v, master and EMA after a few steps in float. m and v round three times a
// step, master and EMA once at the size of a parameter; 1e-6 is some ten roundings. The compute
// copy adds one rounding to its own type, whose RMS is half of 2^-11 or 2^-8.
inline constexpr Tolerance kAdamWTolerance = {1e-6, 4e-4, 3e-3};

inline Work optimizer_prepare_work(std::int64_t count) {
  const double n = static_cast<double>(count);
  return {4 * n, 2 * n, 0};
}
// Reads gradient, master, m and v (and EMA), writes all but the gradient and the compute copy.
inline Work adamw_update_work(std::int64_t count, DType compute, bool ema) {
  const double n = static_cast<double>(count);
  const double copy = compute == DType::f32 ? 0 : static_cast<double>(size_of(compute));
  return {(28 + copy + (ema ? 8 : 0)) * n, 16 * n, 2 * n};
}

}  // namespace fm
