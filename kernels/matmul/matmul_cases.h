// Shapes, tolerances and work of the linear layer's products.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/matmul/matmul.h"

namespace fm {

// rows, in, out, groups, x_stride, y_stride, x_group, y_group
inline constexpr LinearShape kMatmulCases[] = {
    {1, 8, 16},
    {7, 3, 5},        // rows of 6 and 10 bytes in half precision
    {197, 4, 128},    // a patch of 4 pixels to a token
    {197, 128, 4},    // and back
    {256, 128, 768},  // modulation from the time embedding
    {1000, 128, 384},
    {257, 256, 136, 2},                    // x_proj of a scan in both directions
    {197, 8, 256, 2, 272, 512, 136, 256},  // dt_proj: reads the last 8 columns of x_proj's 136
    {50, 24, 40, 3, 24, 40, 50 * 24, 50 * 40},
    {64, 48, 40, 1, 0, 129},  // unaligned rows
    {196, 512, 128},          // few rows, and the longest sum their kernel takes
    {35, 264, 21},
};

// Long sums over rows, every tile of the weight gradient's own kernel among them: rows that are no
// whole stages, outputs that are no whole tiles, rows of 8 bytes.
inline constexpr LinearShape kMatmulLong[] = {
    {64 * 196, 128, 384},
    {5001, 128, 1024},
    {5003, 512, 128},
    {4999, 256, 136, 2},
    {5000, 8, 256, 2, 272, 512, 136, 256},
    {4100, 120, 376, 2, 272, 800, 136, 400},  // strides of 16 bytes, as Hopper's kernel takes them
    {4101, 200, 72},
    {4101, 248, 136},
    {12543, 4, 128},
    {12543, 128, 4},
    {4500, 24, 40},
};

// Many rows for the multiprocessors that the test allows, as Hopper's own kernel wants them: rows
// that are no whole tiles, outputs that are no whole chunks, one slice of them and several, sums of
// one panel and of two, wide rows.
inline constexpr LinearShape kMatmulManyRows[] = {
    {5001, 128, 1024}, {5003, 128, 384}, {4999, 128, 128},
    {4100, 120, 136},  {4097, 256, 72},  {4101, 72, 200, 1, 80, 208},
    {4099, 384, 128},
};

// The paper's layers: qkv, attention out, SwiGLU up and down, Mamba in and out, x_proj, dt_proj.
inline constexpr std::int64_t kMatmulPaperRows = 256 * 196;
inline constexpr LinearShape kMatmulPaper[] = {
    {kMatmulPaperRows, 128, 384},    {kMatmulPaperRows, 128, 128},
    {kMatmulPaperRows, 128, 1024},   {kMatmulPaperRows, 512, 128},
    {kMatmulPaperRows, 256, 136, 2}, {kMatmulPaperRows, 8, 256, 2, 272, 512, 136, 256},
    {kMatmulPaperRows, 4, 128},      {kMatmulPaperRows, 128, 4},
};

// Results in the type of the operands: one rounding, uniform within half an ulp (2^-12 of the value
// for fp16, 2^-9 for bf16 at the middle of a binade), whose RMS is 0.6 of that. fp32: half an ulp
// times the square root of the length of a sum, 6e-8 * sqrt(12544) = 7e-6 at the longest tested.
inline constexpr Tolerance kMatmulTolerance = {1e-5, 5e-4, 4e-3};

// Results in fp32 of half-precision operands, whose products are exact. Tensor cores cut off, not
// round, each partial sum of 16 products: half an ulp each, all to one side, 12544 / 16 of them:
// 5e-5.
inline constexpr Tolerance kMatmulWideTolerance = {1e-5, 1e-4, 1e-4};

inline double linear_elements(const LinearShape& s, double a, double b) {
  return s.groups * a * b;
}
inline Work linear_forward_work(const LinearShape& s, DType t, DType y_type) {
  const double rows = static_cast<double>(s.rows), size = static_cast<double>(size_of(t));
  return {size * linear_elements(s, rows, s.in) + size * linear_elements(s, s.out, s.in) +
              static_cast<double>(size_of(y_type)) * linear_elements(s, rows, s.out),
          0, 0, 2 * linear_elements(s, rows, s.in) * s.out};
}
inline Work linear_backward_input_work(const LinearShape& s, DType t) {
  return linear_forward_work(s, t, t);
}
// With the bias's gradient: a sum over the rows of dy.
inline Work linear_backward_weight_work(const LinearShape& s, DType t) {
  const double rows = static_cast<double>(s.rows), size = static_cast<double>(size_of(t));
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  return {size * linear_elements(s, rows, s.in) + size * linear_elements(s, rows, s.out) +
              wide * linear_elements(s, s.out, s.in) + wide * s.groups * s.out,
          linear_elements(s, rows, s.out), 0, 2 * linear_elements(s, rows, s.in) * s.out};
}

}  // namespace fm
