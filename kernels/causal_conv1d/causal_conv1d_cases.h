// Shapes, tolerances and work of causal_conv1d.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/causal_conv1d/causal_conv1d.h"

namespace fm {

struct ConvCase {
  ConvShape shape;
  std::int64_t x_stride;
};

inline constexpr ConvCase kConvCases[] = {
    {{1, 1, 1, 1, 4}, 1},
    {{2, 7, 6, 2, 4}, 13},    // no vectors
    {{3, 33, 24, 2, 2}, 48},  // 12 channels a direction: vectors of 4, none of 8
    {{2, 2, 16, 2, 5}, 16},   // fewer tokens than taps
    {{2, 29, 80, 1, 6}, 88},  // one direction
    {{2, 50, 70, 2, 4}, 71},  // no vectors, more than one block of channels
    {{1, 196, 16, 2, 7}, 40},
    {{2, 197, 264, 1, 3}, 264},     // more than one block of channels, the last one narrow
    {{1, 1000, 48, 2, 8}, 96},      // several pieces of an image
    {{3, 196, 512, 2, 4}, 1024},    // the paper's, fewer images
    {{140, 30, 1024, 2, 4}, 1032},  // enough channels and images for long runs
};
inline constexpr ConvCase kConvPaper = {{256, 196, 512, 2, 4}, 1024};

// f16, bf16: one rounding of u and dx: half an ulp is 2^-12 and 2^-9, the RMS about half of that.
// f32: the hardware's exp is off by 2 + 1.2 |s| ulp and the sums over tokens add as much again.
inline constexpr Tolerance kConvTolerance = {2e-6, 4e-4, 3e-3};

inline double conv_elements(const ConvShape& s) {
  return static_cast<double>(s.batch) * s.length * s.channels;
}
inline Work conv_forward_work(const ConvShape& s, DType t) {
  const double elements = conv_elements(s);
  return {2 * elements * static_cast<double>(size_of(t)), (2 * s.width + 2) * elements,
          2 * elements};
}
inline Work conv_backward_work(const ConvShape& s, DType t) {
  const double elements = conv_elements(s);
  return {3 * elements * static_cast<double>(size_of(t)), (6 * s.width + 8) * elements,
          2 * elements};
}

}  // namespace fm
