// Shapes, tolerances and work of residual_norm.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/residual_norm/residual_norm.h"

namespace fm {

// Every team size of the CUDA kernels, full and partly filled rows, and odd lengths.
inline constexpr ResidualNormShape kResidualNormCases[] = {
    {1, 1, 8, 24, 8},         {3, 7, 104, 312, 208},   {5, 196, 128, 768, 768},
    {2, 197, 136, 408, 136},  {3, 33, 256, 1536, 512}, {2, 17, 504, 1512, 504},
    {2, 9, 768, 2304, 768},   {1, 1000, 64, 128, 192}, {2, 5, 2048, 4096, 6144},
    {2, 6, 4096, 8192, 4096},
};
inline constexpr ResidualNormShape kResidualNormPaper = {256, 196, 128, 768, 768};

// fp32: sums of up to 1000 terms, each rounded (2^-24), grow like a random walk. fp16 and bf16: one
// rounding of the result, half an ulp: at most 2^-11 and 2^-8 of each element. Where the stream is
// narrow as well, y is of the stored out: in a test against double, which does not round it, that
// is a second rounding.
inline constexpr Tolerance kResidualNormTolerance = {2e-6, 5e-4, 4e-3};

// With a branch behind, as everywhere but at the first norm of a model; `stream`: X.
inline Work residual_norm_forward_work(const ResidualNormShape& s, DType t, DType stream) {
  const double rows = static_cast<double>(s.batch) * s.length, elements = rows * s.width;
  const double wide = static_cast<double>(size_of(stream));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (2 * wide + 2 * narrow) + 3.0 * s.batch * s.width * narrow, 10 * elements,
          rows};
}
inline Work residual_norm_backward_work(const ResidualNormShape& s, DType t, DType stream) {
  const double rows = static_cast<double>(s.batch) * s.length, elements = rows * s.width;
  const double wide = static_cast<double>(size_of(stream));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (3 * wide + 3 * narrow) + 5.0 * s.batch * s.width * narrow, 22 * elements,
          rows};
}

}  // namespace fm
