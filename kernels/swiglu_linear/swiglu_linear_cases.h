// Shapes, tolerances and work of swiglu_linear.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/swiglu_linear/swiglu_linear.h"

namespace fm {

inline constexpr SwigluLinearShape kSwigluLinearCases[] = {
    {1, 64, 32},
    {7, 128, 96},
    {197, 64, 192},
    {1000, 128, 512},
};
inline constexpr SwigluLinearShape kSwigluLinearPaper = {256 * 196, 128, 512};

// One rounding of each result, as swiglu's: products and gates are kept in float between.
inline constexpr Tolerance kSwigluLinearTolerance = {1e-5, 4e-4, 3e-3};

inline Work swiglu_linear_forward_work(const SwigluLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), weights = 2.0 * s.hidden * s.width;
  const double bytes = rows * (s.width + s.hidden) + weights;
  return {bytes * static_cast<double>(size_of(t)), 6 * rows * s.hidden, 2 * rows * s.hidden,
          2 * rows * weights};
}
inline Work swiglu_linear_backward_work(const SwigluLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), weights = 3.0 * s.hidden * s.width;
  const double bytes = rows * (2.0 * s.width + 3.0 * s.hidden) + weights;
  return {bytes * static_cast<double>(size_of(t)), 12 * rows * s.hidden, 2 * rows * s.hidden,
          2 * rows * weights};
}

}  // namespace fm
