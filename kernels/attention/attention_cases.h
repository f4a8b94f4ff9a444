// Shapes, tolerances and work of attention.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/base/cases.h"

namespace fm {

inline constexpr int kAttentionLengths[] = {1, 7, 196, 197};
inline constexpr int kAttentionHeadDims[] = {8, 16, 24, 32, 64, 128};
// Lengths of full tiles, just past them and just short of them, many tiles, and head dims that fill
// their padding worst.
inline constexpr AttentionShape kAttentionMoreCases[] = {
    {1, 64, 1, 16},   {2, 33, 5, 40},  {1, 129, 2, 72}, {3, 17, 1, 120},
    {1, 1000, 2, 16}, {1, 500, 1, 96}, {1, 77, 2, 16},  {2, 94, 1, 32},
};
inline constexpr AttentionShape kAttentionPaper = {256, 196, 8, 16};
// Timed beside the paper's: wider heads, a smaller batch, long sequences.
inline constexpr AttentionShape kAttentionTimed[] = {
    {256, 196, 4, 32}, {64, 196, 8, 16}, {4, 4096, 8, 16}, {1, 16384, 8, 16}};

// f16: P is rounded (RMS 2e-4 of itself), then the result (2e-4): 3e-4 together, and o is within
// 5e-4. The gradients add the rounding of dS and of o within sum(d_o o). bf16 has 8 times the ulp.
// f32: sums of up to a thousand products, and the exponent's rounding, which grows with |lse|.
inline constexpr Tolerance kAttentionForwardTolerance = {1e-5, 5e-4, 4e-3};
inline constexpr Tolerance kAttentionBackwardTolerance = {1e-5, 1e-3, 8e-3};

// Two products of 2 hd operations a pair of tokens forward, five backward. Beside them a pair costs
// the scale, the maximum, the difference and the sum; backward the scale, the difference, two
// factors and the difference with the row's sum.
inline double attention_pairs(const AttentionShape& s) {
  return static_cast<double>(s.batch) * s.heads * s.length * s.length;
}
inline double attention_rows(const AttentionShape& s) {
  return static_cast<double>(s.batch) * s.heads * s.length;
}
inline Work attention_forward_work(const AttentionShape& s, DType t) {
  return {attention_rows(s) * (4.0 * s.head_dim * static_cast<double>(size_of(t)) + 4),
          attention_pairs(s) * 4, attention_pairs(s), attention_pairs(s) * 4 * s.head_dim};
}
inline Work attention_backward_work(const AttentionShape& s, DType t) {
  return {attention_rows(s) * (8.0 * s.head_dim * static_cast<double>(size_of(t)) + 4),
          attention_pairs(s) * 5, attention_pairs(s), attention_pairs(s) * 10 * s.head_dim};
}

}  // namespace fm
