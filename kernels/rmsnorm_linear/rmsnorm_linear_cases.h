// Shapes, tolerances and work of rmsnorm_linear.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {

inline constexpr RmsNormLinearShape kRmsNormLinearCases[] = {
    // rows, in, out, eps
    {1, 1, 1, 10},          {7, 13, 5, 1e-5},       // no vectors
    {33, 24, 12, 1e-5},                             // vectors of 4, none of 8
    {197, 100, 300, 1e-6},                          // wider out than in
    {9, 1032, 264, 1e-5},                           // several steps a row, and a rest
    {1000, 512, 128, 1e-5}, {196, 512, 128, 1e-5},  // few rows
    {35, 264, 21, 1e-5},                            // and few of odd number
};
inline constexpr RmsNormLinearShape kRmsNormLinearPaper = {256 * 196, 512, 128, 1e-5};

// f16, bf16: one rounding a result, two where the product is stored between: half an ulp is 2^-12
// and 2^-9, the RMS about half of that. f32: what a sum of a thousand products is off by.
inline constexpr Tolerance kRmsNormLinearTolerance = {1e-5, 5e-4, 4e-3};

// The products and the passes over rows; what is done to W alone is small.
inline Work rmsnorm_linear_forward_work(const RmsNormLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows);
  return {rows * (s.in + s.out) * static_cast<double>(size_of(t)), 2 * rows * s.in, rows,
          2 * rows * s.in * s.out};
}
inline Work rmsnorm_scale_backward_work(const RmsNormLinearShape& s, DType t) {
  const double elements = static_cast<double>(s.rows) * s.out;
  return {3 * elements * static_cast<double>(size_of(t)), 3 * elements, 0};
}
inline Work rmsnorm_linear_backward_input_work(const RmsNormLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows);
  return {rows * (2.0 * s.in + s.out) * static_cast<double>(size_of(t)), 2 * rows * s.in, 0,
          2 * rows * s.in * s.out};
}

}  // namespace fm
