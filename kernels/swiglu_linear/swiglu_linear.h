// The wide half of a SwiGLU network in one kernel, so that its products [rows, 2 hidden] never
// reach memory: forward
//   [a | b] = x w12^T + bias,  h = silu(a) b,
// and the same products again in the backward pass, beside dh = dy w3:
//   da = dh b s (1 + a (1 - s)),  db = dh silu(a),  s = sigmoid(a).
// By bytes: 5 and 14 units of [rows, width] where products and gates apart move 21 and 41 (at
// hidden = 4 width). Source: Shazeer 2020, "GLU Variants Improve Transformer".
//
// CUDA only, f16 and bf16, sums in float; swiglu_linear_fits says for which shapes. Elsewhere the
// engine composes the products of kernels/matmul with kernels/swiglu.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct SwigluLinearShape {
  std::int64_t rows;
  int width;   // of x and y
  int hidden;  // of h
};

template <class T>
struct SwigluLinearForward {
  SwigluLinearShape shape;
  const T* x;     // [rows, width]
  const T* w12;   // [2 hidden, width]: a's rows, then b's
  const T* bias;  // [2 hidden]
  T* h;           // [rows, hidden]
};

template <class T>
struct SwigluLinearBackward {
  SwigluLinearShape shape;
  const T* x;
  const T* w12;
  const T* bias;
  const T* w3;  // [width, hidden]
  const T* dy;  // [rows, width]
  T* dab;       // [rows, 2 hidden]
  T* h;         // [rows, hidden], as in the forward pass
};

#if FM_CUDA
// Whether the kernels take this shape and type: f16 or bf16, width 64 or 128, hidden a multiple of
// 32.
bool swiglu_linear_fits(const SwigluLinearShape&, DType);

template <class T>
void swiglu_linear_forward(CudaQueue&, const SwigluLinearForward<T>&);
template <class T>
void swiglu_linear_backward(CudaQueue&, const SwigluLinearBackward<T>&);
#endif

}  // namespace fm
