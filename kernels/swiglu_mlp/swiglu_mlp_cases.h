// Shapes, tolerances and work of swiglu_mlp.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/swiglu_mlp/swiglu_mlp.h"

namespace fm {

// A row; less than, exactly and more than one block's rows; more blocks of rows than
// multiprocessors; slices of one tile and of several.
inline constexpr SwigluMlpShape kSwigluMlpCases[] = {
    {1, 128, 64},    {7, 128, 128},    {128, 128, 512},
    {197, 128, 192}, {1000, 128, 512}, {20000, 128, 64},
};
inline constexpr SwigluMlpShape kSwigluMlpPaper = {256 * 196, 128, 512};

// Beside the results' own rounding (2.8e-4 of f16, 2.3e-3 of bf16), that of h and of the gradients
// of a and b, which are independent of it: sqrt 2 of one rounding, and room for the sums' own.
inline constexpr Tolerance kSwigluMlpTolerance = {1e-5, 6e-4, 5e-3};

inline Work swiglu_mlp_forward_work(const SwigluMlpShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), weights = 3.0 * s.hidden * s.width;
  const double bytes = rows * 2 * s.width + weights;
  return {bytes * static_cast<double>(size_of(t)), 6 * rows * s.hidden, 2 * rows * s.hidden,
          2 * rows * weights};
}
// The wide half alone: swiglu_few_rows.
inline Work swiglu_few_rows_work(const SwigluMlpShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), weights = 2.0 * s.hidden * s.width;
  const double bytes = rows * (s.width + s.hidden) + weights;
  return {bytes * static_cast<double>(size_of(t)), 6 * rows * s.hidden, 2 * rows * s.hidden,
          2 * rows * weights};
}
// a, b and the gradient of h once: the least, not what is done.
inline Work swiglu_mlp_backward_work(const SwigluMlpShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), weights = 3.0 * s.hidden * s.width;
  const double bytes = (rows * 3 * s.width + weights) * static_cast<double>(size_of(t));
  return {bytes + weights * sizeof(float), 12 * rows * s.hidden, 2 * rows * s.hidden,
          2 * rows * (2 * weights + 2.0 * s.hidden * s.width)};
}

}  // namespace fm
