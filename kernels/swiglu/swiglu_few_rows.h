// The wide half of a SwiGLU network for few rows, where what counts is latency: one image's tokens.
//   h = silu(x a^T + bias_a) (x b^T + bias_b),  w12 = [a; b]
// kernels/swiglu_linear does the same with tiles for many rows. Source: Shazeer 2020, "GLU Variants
// Improve Transformer".
//
// CUDA only, f16 and bf16, sums in float.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class T>
struct SwigluFewRows {
  std::int64_t rows;
  int width, hidden;
  const T* x;     // [rows, width]
  const T* w12;   // [2 hidden, width]: a's rows, then b's
  const T* bias;  // [2 hidden]
  T* h;           // [rows, hidden]
};

#if FM_CUDA
// At most 512 rows; width a multiple of 8, at most 512; hidden a multiple of 4.
bool swiglu_few_rows_fits(std::int64_t rows, int width, int hidden, DType);

// Arrays begin at multiples of 16 bytes.
template <class T>
void swiglu_few_rows(CudaQueue&, const SwigluFewRows<T>&);
#endif

}  // namespace fm
