// Shapes and tolerance of velocity_head.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/patchify/velocity_head.h"

namespace fm {

struct VelocityHeadCase {
  PatchShape patches;
  int width;
};

// Every number of columns a thread, full and partly filled rows, one token and
// odd numbers.
inline constexpr VelocityHeadCase kVelocityHeadCases[] = {
    {{1, 1, 1, 1, 1}, 8},    {{3, 1, 28, 28, 2}, 128}, {{2, 3, 6, 10, 2}, 136},
    {{1, 1, 9, 21, 3}, 256}, {{2, 4, 4, 6, 2}, 504},
};

// Nothing between the operands and v is rounded but the sum to a narrow stream:
// half an ulp of it, at most 2^-11 and 2^-8, before LayerNorm. Else float sums
// of 512 terms.
inline constexpr Tolerance kVelocityHeadTolerance = {5e-6, 5e-6, 5e-6};
inline constexpr Tolerance kVelocityHeadNarrowTolerance = {5e-6, 1e-3, 8e-3};

}  // namespace fm
