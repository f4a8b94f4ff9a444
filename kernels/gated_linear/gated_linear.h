// The gated half of a SwiGLU network: a linear layer and its gate, in one kernel where that pays.
//
//   (a, b) = x w^T + bias,  y = silu(a) b
// Backward, s = sigmoid(a): da = dy b s (1 + a (1 - s)), db = dy silu(a); y is made again beside
// them, for the weight gradient of the product that reads it, so that it need not be saved. The
// gradients of x, w and bias are those of a linear layer with output gradient (da, db)
// (kernels/matmul). Source: Shazeer 2020, "GLU Variants Improve Transformer". T is double or float
// on the CPU, float, f16 or bf16 on CUDA, where arrays begin at multiples of 16 bytes; sums and
// arithmetic in acc_t<T>.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct GatedLinearShape {
  std::int64_t rows;
  int in, hidden;  // multiples of 8
};

// Throws where a shape is outside the contract.
inline void check_shape(const GatedLinearShape& s) {
  FM_CHECK(s.rows > 0, "[gated_linear] rows must be positive, got ", s.rows);
  FM_CHECK(s.in > 0 && s.in % 8 == 0 && s.hidden > 0 && s.hidden % 8 == 0,
           "[gated_linear] in and hidden must be multiples of 8, got ", s.in, " and ", s.hidden);
}

template <class T>
struct GatedLinearForward {
  GatedLinearShape shape;
  const T* x;     // [rows, in]
  const T* w;     // [2 hidden, in]: a's rows, then b's
  const T* bias;  // [2 hidden]
  T* ab;          // [rows, 2 hidden]: a, then b, left for backward where they are kept; or null
  T* y;           // [rows, hidden]
};

template <class T>
struct GatedLinearBackward {
  GatedLinearShape shape;
  const T* x;
  const T* w;
  const T* bias;
  const T* dy;
  T* dab;  // [rows, 2 hidden], overwritten; where a and b are kept, they are found here
  T* y;    // [rows, hidden], overwritten; may be dy
};

// Whether a and b go through memory: always, but in half precision on CUDA up to 128 inputs. There
// backward makes them again from x, for less than the time it takes to write and read them.
template <class T>
bool gated_linear_keeps_ab(CpuQueue&, const GatedLinearShape&);
template <class T>
bool gated_linear_keeps_ab(CudaQueue&, const GatedLinearShape&);

template <class T>
void gated_linear_forward(CpuQueue&, const GatedLinearForward<T>&);
template <class T>
void gated_linear_forward(CudaQueue&, const GatedLinearForward<T>&);
template <class T>
void gated_linear_backward(CpuQueue&, const GatedLinearBackward<T>&);
template <class T>
void gated_linear_backward(CudaQueue&, const GatedLinearBackward<T>&);

}  // namespace fm
