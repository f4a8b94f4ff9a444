// Shapes, tolerances and work of swiglu.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/swiglu/swiglu.h"

namespace fm {

inline constexpr SwigluShape kSwigluCases[] = {
    {1, 8},
    {7, 48},
    {197, 96},
    {1000, 512},
};
inline constexpr SwigluShape kSwigluPaper = {256 * 196, 512};

// One rounding of the result: half an ulp is 2^-12 for fp16 and 2^-9 for bf16; the RMS is about
// half of that.
inline constexpr Tolerance kSwigluTolerance = {1e-6, 4e-4, 3e-3};

inline Work swiglu_forward_work(const SwigluShape& s, DType t) {
  const double elements = static_cast<double>(s.rows) * s.hidden;
  return {3 * elements * static_cast<double>(size_of(t)), 4 * elements, 2 * elements};
}
inline Work swiglu_backward_work(const SwigluShape& s, DType t) {
  const double elements = static_cast<double>(s.rows) * s.hidden;
  return {6 * elements * static_cast<double>(size_of(t)), 11 * elements, 2 * elements};
}

}  // namespace fm
