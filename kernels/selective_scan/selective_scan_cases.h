// Shapes, tolerances and work of the selective scan.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/selective_scan/selective_scan.h"

namespace fm {

// b and c are columns of a [B, L, directions, rank + 2 n] matrix, after `rank` columns of dt's
// projection: a rank of 3 leaves rows that no wide access is aligned to.
struct ScanCase {
  ScanShape shape;
  int rank;
};

inline constexpr ScanCase kScanCases[] = {
    {{2, 1, 8, 1, 1}, 3},     {{3, 7, 6, 5, 2}, 3},      {{2, 196, 32, 64, 2}, 8},
    {{2, 197, 80, 16, 2}, 8}, {{1, 197, 20, 128, 1}, 3}, {{1, 1000, 16, 64, 2}, 8},
    {{33, 40, 16, 8, 2}, 8},
};
inline constexpr ScanCase kScanPaper = {{256, 196, 512, 64, 2}, 8};
// Timed beside the paper's: a smaller state, a smaller batch, long sequences.
inline constexpr ScanCase kScanTimed[] = {{{256, 196, 512, 16, 2}, 8},
                                          {{64, 196, 512, 64, 2}, 8},
                                          {{4, 4096, 512, 64, 2}, 8},
                                          {{1, 16384, 512, 64, 2}, 8}};

// o and y: one rounding of the result (half an ulp is 2^-12 for fp16, 2^-9 for bf16, the RMS about
// half of that) and as much again for a state or an exp that is not exact to the last bit; fp32
// adds up the roundings of an L-step recurrence. Gradients: dz reads the rounded y, dA and ddt the
// saved states, which may be 16 bits wide, and each is rounded once more.
inline constexpr Tolerance kScanTolerance = {2e-5, 4e-4, 3.2e-3};
inline constexpr Tolerance kScanGradientTolerance = {2e-5, 1e-3, 8e-3};

// An element is a (token, channel, state). Forward: delta A, a h + (delta u) B, the sum with C, and
// one exp; a channel of a token adds the softplus (an exp and a logarithm) and the gate (an exp and
// a reciprocal), if there is one. Saved states are left out: the least a computation must do.
inline Work scan_forward_work(const ScanShape& s, DType t, bool gated) {
  const double tokens = static_cast<double>(s.batch) * s.length;
  const double lines = tokens * s.channels, elements = lines * s.state;
  const double rows = tokens * 2 * s.directions * s.state;  // b and c
  const int gate = gated ? 1 : 0;
  return {((3 + gate) * lines + rows) * static_cast<double>(size_of(t)),
          6 * elements + (7 + 3 * gate) * lines, elements + (2 + 2 * gate) * lines};
}

// Backward, without a gate: delta A and the state again (4), then g, dC, dB, s1, q, p, s2 and dA
// (14), one exp.
inline Work scan_backward_work(const ScanShape& s, DType t) {
  const double tokens = static_cast<double>(s.batch) * s.length;
  const double lines = tokens * s.channels, elements = lines * s.state;
  const double rows = tokens * 4 * s.directions * s.state;  // b, c, db and dc
  return {(5 * lines + rows) * static_cast<double>(size_of(t)), 18 * elements + 15 * lines,
          elements + 3 * lines};
}

}  // namespace fm
