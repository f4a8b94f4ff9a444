// Shapes, tolerances and work of rmsnorm_linear.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {

inline constexpr RmsNormLinearShape kRmsNormLinearCases[] = {
    // rows, in, out, eps, stride of the gate
    {1, 1, 1, 10},
    {7, 13, 5, 1e-5},       // no vectors
    {33, 24, 12, 1e-5},     // vectors of 4, none of 8
    {197, 100, 300, 1e-6},  // wider out than in
    {9, 1032, 264, 1e-5},   // several steps a row, and a rest
    {1000, 512, 128, 1e-5},
    {196, 512, 128, 1e-5},  // few rows
    {35, 264, 21, 1e-5},    // and few of odd number
    {5001, 128, 24, 1e-5},  // many rows
    {7, 13, 5, 1e-5, 26},
    {33, 24, 12, 1e-5, 48},  // the same with a gate
    {9, 1032, 264, 1e-5, 2064},
    {65, 136, 120, 1e-5, 272},  // tiles of columns and rows that end inside one
    {1000, 512, 128, 1e-5, 1024},
    {4201, 512, 128, 1e-5, 1024},
    {20011, 64, 8, 1e-5, 64},  // several tiles a block
};
inline constexpr RmsNormLinearShape kRmsNormLinearPaper = {256 * 196, 512, 128, 1e-5, 1024};

// f16, bf16: one rounding a result, two where the product is stored between: half an ulp is 2^-12
// and 2^-9, the RMS about half of that. f32: what a sum of a thousand products is off by.
inline constexpr Tolerance kRmsNormLinearTolerance = {1e-5, 5e-4, 4e-3};

// The products and the passes over rows; what is done to W alone is small. A gate costs an
// exponential and a reciprocal an element.
inline Work rmsnorm_linear_forward_work(const RmsNormLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), gates = s.gated() ? rows * s.in : 0;
  return {(rows * (s.in + s.out) + gates) * static_cast<double>(size_of(t)),
          2 * rows * s.in + 3 * gates, rows + 2 * gates, 2 * rows * s.in * s.out};
}
inline Work rmsnorm_linear_backward_work(const RmsNormLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), gates = s.gated() ? rows * s.in : 0;
  return {(rows * (2.0 * s.in + 2.0 * s.out) + 2 * gates) * static_cast<double>(size_of(t)),
          2 * rows * (s.in + s.out) + 8 * gates, 2 * gates, 4 * rows * s.in * s.out};
}

}  // namespace fm
