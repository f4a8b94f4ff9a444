// Shapes, tolerances and work of gated_linear.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/gated_linear/gated_linear.h"

namespace fm {

// Rows around the CUDA kernels' 16, inputs below and at their chunks of 32, hidden widths of part
// of a warp's 32 units, of several warps, and one input width that is too wide for one kernel.
inline constexpr GatedLinearShape kGatedLinearCases[] = {
    {1, 8, 8},       {15, 24, 40},    {33, 32, 64},   {49, 40, 96},     {197, 72, 200},
    {196, 128, 512}, {100, 104, 264}, {64, 136, 128}, {5000, 128, 512},
};
inline constexpr GatedLinearShape kGatedLinearPaper = {256 * 196, 128, 512};

// fp32: sums of up to 128 products, each rounded (2^-24). fp16 and bf16: where a and b stay in
// registers, the result is rounded once, half an ulp being 2^-12 and 2^-9 of it at most and half of
// that in the mean; where they go through memory, a and b are rounded as well.
inline constexpr Tolerance kGatedLinearTolerance = {2e-6, 8e-4, 6e-3};

// The least: a and b made in both directions, and never in memory.
inline Work gated_linear_forward_work(const GatedLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), units = rows * s.hidden;
  return {(rows * s.in + units) * static_cast<double>(size_of(t)), 4 * units * s.in + 4 * units,
          2 * units};
}
inline Work gated_linear_backward_work(const GatedLinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), units = rows * s.hidden;
  return {(rows * s.in + 4 * units) * static_cast<double>(size_of(t)),
          4 * units * s.in + 11 * units, 2 * units};
}

}  // namespace fm
