// Shapes, tolerances and work of velocity_head.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/patchify/velocity_head.h"

namespace fm {

struct VelocityHeadCase {
  PatchShape patches;
  int width;
};

// Every number of columns a thread, full and partly filled rows, one token and odd numbers.
inline constexpr VelocityHeadCase kVelocityHeadCases[] = {
    {{1, 1, 1, 1, 1}, 8},    {{3, 1, 28, 28, 2}, 128}, {{2, 3, 6, 10, 2}, 136},
    {{1, 1, 9, 21, 3}, 256}, {{2, 4, 4, 6, 2}, 504},
};

inline constexpr VelocityHeadCase kVelocityHeadPaper = {{64, 1, 28, 28, 2}, 128};  // sampled

// Nothing between the operands and v is rounded but the sum to a narrow stream: half an ulp of it,
// at most 2^-11 and 2^-8, before LayerNorm. Else float sums of 512 terms.
inline constexpr Tolerance kVelocityHeadTolerance = {5e-6, 5e-6, 5e-6};
inline constexpr Tolerance kVelocityHeadNarrowTolerance = {5e-6, 1e-3, 8e-3};

// With the stream in acc_t of t.
inline Work velocity_head_work(const VelocityHeadCase& c, DType t) {
  const double rows = static_cast<double>(c.patches.batch) * token_count(c.patches);
  const double narrow = static_cast<double>(size_of(t)), out = token_width(c.patches);
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  return {
      rows * (c.width * (wide + narrow) + out * wide) + 3.0 * c.patches.batch * c.width * narrow,
      rows * c.width * (10 + out), rows};
}

}  // namespace fm
