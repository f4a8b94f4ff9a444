// Shapes, tolerances and work of rmsnorm.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {

inline constexpr RmsNormShape kRmsNormCases[] = {
    // rows, groups, width, segments, begins, widths, eps
    {1, 1, 1, 1, {0}, {1}, 10},  // one column: dx cancels to a share eps / (x^2 + eps)
    {7, 2, 13, 3, {0, 3, 8}, {3, 5, 5}, 1e-5},         // dt rank 3, d_state 5
    {33, 3, 24, 2, {16, 4}, {8, 9}, 1e-5},             // gaps, out of order, one misaligned
    {197, 1, 100, 1, {0}, {100}, 1e-6},                // vectors of 4, none of 8
    {21, 1, 4096, 1, {0}, {4096}, 1e-5},               // fewer threads a block
    {9, 1, 5003, 1, {2}, {5001}, 1e-5},                // no vectors, and wide
    {1000, 2, 136, 3, {0, 8, 72}, {8, 64, 64}, 1e-5},  // dt, B and C of both directions
    {129, 4, 64, 2, {0, 40}, {40, 24}, 1e-5},          // short segments, groups of a warp
    {77, 16, 16, 1, {0}, {16}, 1e-5},                  // and more groups than a warp has teams
    {3 * 1571, 1, 512, 1, {0}, {512}, 1e-5},           // several rows a piece
};
inline constexpr RmsNormShape kRmsNormPaperStates = {256 * 196,  2,           136, 3,
                                                     {0, 8, 72}, {8, 64, 64}, 1e-5};
inline constexpr RmsNormShape kRmsNormPaperOutput = {256 * 196, 1, 512, 1, {0}, {512}, 1e-5};

// f16, bf16: one rounding of y and dx: half an ulp is 2^-12 and 2^-9, the RMS about half of that.
// f32: r is off by 2 ulp, and sums over thousands of rows by about as much again.
inline constexpr Tolerance kRmsNormTolerance = {1e-6, 4e-4, 3e-3};

inline double rmsnorm_elements(const RmsNormShape& s) {
  return static_cast<double>(s.rows) * static_cast<double>(s.weights());
}
inline Work rmsnorm_forward_work(const RmsNormShape& s, DType t) {
  const double elements = rmsnorm_elements(s);
  const double norms = static_cast<double>(s.rows) * s.groups * s.segments;
  return {2 * elements * static_cast<double>(size_of(t)), 4 * elements, norms};
}
inline Work rmsnorm_backward_work(const RmsNormShape& s, DType t) {
  const double elements = rmsnorm_elements(s);
  const double norms = static_cast<double>(s.rows) * s.groups * s.segments;
  return {3 * elements * static_cast<double>(size_of(t)), 12 * elements, norms};
}

}  // namespace fm
