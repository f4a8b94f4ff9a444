// Shapes, tolerances and work of patchify and unpatchify.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/patchify/patchify.h"

namespace fm {

// {batch, channels, height, width, patch}
inline constexpr PatchShape kPatchCases[] = {
    {1, 1, 1, 1, 1},  {3, 1, 28, 28, 2}, {2, 3, 6, 10, 2},
    {5, 3, 9, 21, 3}, {2, 4, 32, 24, 8}, {2, 1, 7, 7, 7},
};
inline constexpr PatchShape kPatchPaper = {256, 1, 28, 28, 2};

// Inputs that the types can hold are moved without a rounding.
inline constexpr Tolerance kPatchTolerance = {0, 0, 0};

// Sums of up to 256 products in float, 2^-24 each. The narrow stream's one rounding is half an ulp:
// at most 2^-11 (f16) and 2^-8 (bf16) of each element.
inline constexpr Tolerance kEmbedPatchesTolerance = {2e-6, 2e-6, 2e-6};
inline constexpr Tolerance kEmbedPatchesNarrowTolerance = {2e-6, 5e-4, 4e-3};

// Of patchify from fp32 to t; unpatchify's is that of fp32.
inline Work patchify_work(const PatchShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.channels * s.height * s.width;
  return {elements * static_cast<double>(4 + size_of(t)), 0, 0};
}
// With the tokens kept, for a stream in acc_t of t.
inline Work embed_patches_work(const PatchShape& s, int width, DType t) {
  const double elements = static_cast<double>(s.batch) * s.channels * s.height * s.width;
  const double outputs = static_cast<double>(s.batch) * token_count(s) * width;
  return {elements * static_cast<double>(4 + size_of(t)) +
              outputs * static_cast<double>(size_of(acc_dtype(t))),
          outputs * token_width(s), 0};
}

}  // namespace fm
