// Shapes, tolerances and work of layernorm.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/layernorm/layernorm.h"

namespace fm {

// Every team size of the CUDA kernels, full and partly filled rows, and odd lengths.
inline constexpr LayerNormShape kLayerNormCases[] = {
    {1, 1, 8, 24},      {3, 7, 104, 312},   {5, 196, 128, 768}, {2, 197, 136, 408},
    {3, 33, 256, 1536}, {2, 17, 504, 1512}, {2, 9, 768, 2304},  {1, 1000, 64, 128},
    {2, 5, 2048, 4096}, {2, 6, 4096, 8192},
};
inline constexpr LayerNormShape kLayerNormPaper = {256, 196, 128, 768};

// fp32: sums of up to 1000 terms, each rounded (2^-24), grow like a random walk. fp16 and bf16: one
// rounding of the result, half an ulp: at most 2^-11 and 2^-8 of each element.
inline constexpr Tolerance kLayerNormTolerance = {2e-6, 5e-4, 4e-3};

inline Work layernorm_forward_work(const LayerNormShape& s, DType t) {
  const double rows = static_cast<double>(s.batch) * s.length, elements = rows * s.width;
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (wide + narrow) + 2.0 * s.batch * s.width * narrow, 8 * elements, rows};
}
// Accumulating, as in a residual block: dx is read and written.
inline Work layernorm_backward_work(const LayerNormShape& s, DType t) {
  const double rows = static_cast<double>(s.batch) * s.length, elements = rows * s.width;
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (3 * wide + narrow) + 3.0 * s.batch * s.width * narrow, 18 * elements, rows};
}

}  // namespace fm
