// Shapes, tolerances and work of linear_rmsnorm.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm.h"

namespace fm {

inline constexpr LinearRmsNormShape kLinearRmsNormCases[] = {
    // rows, groups, in, segments, widths, eps
    {129, 1, 1, 1, {1}, 10},
    {7, 2, 13, 3, {3, 5, 5}, 1e-5},        // dt rank 3, d_state 5
    {197, 2, 256, 3, {8, 64, 64}, 1e-5},   // one image
    {513, 1, 64, 3, {8, 64, 64}, 1e-5},    // one group, whose rows begin anywhere in a sector
    {1009, 2, 256, 3, {8, 64, 64}, 1e-5},  // the paper's layer
    {777, 3, 128, 3, {8, 32, 32}, 1e-5},   // three groups
    {1000, 2, 64, 3, {8, 16, 16}, 1e-5},   // 16 states
    {531, 2, 128, 3, {64, 32, 32}, 1e-2},  // rank 64; no octet stands alone
    {640, 2, 192, 3, {8, 8, 8}, 1e-5},     // room for more octets than there are
    {529, 1, 64, 1, {48}, 1e-5},           // one segment
    {4241, 2, 64, 2, {16, 24}, 1e-5},      // two, and several tiles a warp
    {520, 140, 64, 3, {8, 8, 8}, 1e-5},    // more groups than an H100 has multiprocessors
    {521, 2, 64, 3, {8, 1, 1}, 1e-5},      // 1 state: no octets
    {547, 2, 64, 3, {8, 128, 128}, 1e-5},  // 128: too many columns for one warp
    {515, 1, 320, 3, {8, 64, 64}, 1e-5},   // more columns of x than are under way at once
    {515, 2, 40, 3, {8, 16, 16}, 1e-5},    // x in no panels
};
inline constexpr LinearRmsNormShape kLinearRmsNormPaper = {256 * 196, 2, 256, 3, {8, 64, 64}, 1e-5};

// f16, bf16: y is rounded once or, where raw is stored between, twice; dx is made of rounded draw.
// Half an ulp is 2^-12 and 2^-9, the RMS about half of that. f32: what a sum of hundreds of
// products is off by. The weights' gradients are float: sums over thousands of rows.
inline constexpr Tolerance kLinearRmsNormTolerance = {1e-5, 5e-4, 4e-3};

inline Work linear_rmsnorm_forward_work(const LinearRmsNormShape& s, DType t) {
  const double groups = static_cast<double>(s.rows) * s.groups, out = s.out();
  return {groups * (s.in + 2 * out) * static_cast<double>(size_of(t)), 4 * groups * out,
          groups * s.segments, 2 * groups * out * s.in};
}
// dx is added to: it is read and written.
inline Work linear_rmsnorm_backward_work(const LinearRmsNormShape& s, DType t) {
  const double groups = static_cast<double>(s.rows) * s.groups, out = s.out();
  return {groups * (2.0 * s.in + 3 * out) * static_cast<double>(size_of(t)),
          12 * groups * out + groups * s.in, groups * s.segments, 2 * groups * out * s.in};
}

}  // namespace fm
