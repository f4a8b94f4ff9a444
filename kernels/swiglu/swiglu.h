// SwiGLU: y = silu(a) b, with a and b the halves of a row.
//
// Backward, s = sigmoid(a): da = dy b s (1 + a (1 - s)), db = dy silu(a); a and b are read again,
// and y is made again for the weight gradient of the product that reads it, so that it need not be
// saved. Source: Shazeer 2020, "GLU Variants Improve Transformer". T is double or float on the CPU,
// float, f16 or bf16 on CUDA, where arrays begin at multiples of 16 bytes; arithmetic in acc_t<T>.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct SwigluShape {
  std::int64_t rows;
  int hidden;  // a multiple of 8
};

template <class T>
struct SwigluForward {
  SwigluShape shape;
  const T* ab;  // [rows, 2 hidden]: a, then b
  T* y;         // [rows, hidden]
};

template <class T>
struct SwigluBackward {
  SwigluShape shape;
  const T* ab;
  const T* dy;
  T* dab;  // [rows, 2 hidden], overwritten; may be ab
  T* y;    // [rows, hidden], overwritten; may be dy
};

template <class T>
void swiglu_forward(CpuQueue&, const SwigluForward<T>&);
template <class T>
void swiglu_forward(CudaQueue&, const SwigluForward<T>&);
template <class T>
void swiglu_backward(CpuQueue&, const SwigluBackward<T>&);
template <class T>
void swiglu_backward(CudaQueue&, const SwigluBackward<T>&);

}  // namespace fm
