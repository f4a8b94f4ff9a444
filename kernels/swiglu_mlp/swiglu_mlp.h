// A SwiGLU network in one kernel forward and three backward:
//   [a | b] = x w12^T + b12,  h = silu(a) b,  y = h w3^T + b3.
// Nothing as wide as the hidden units reaches memory: the backward pass makes a, b and the gradient
// of h again, once for dx and once for the gradients of the weights, which costs 39 Gflop of the
// tensor cores' time and saves 26 units of [rows, width] of memory's (at hidden = 4 width).
// Source: Shazeer 2020, "GLU Variants Improve Transformer".
//
// CUDA of compute capability 9.0 only, f16 and bf16, sums in float; h and the gradients of a, b are
// rounded to T before they are multiplied. swiglu_mlp_fits says for which shapes; elsewhere the
// engine composes kernels/swiglu_linear or kernels/swiglu with products.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct SwigluMlpShape {
  std::int64_t rows;
  int width;   // of x and y
  int hidden;  // of h
};

template <class T>
struct SwigluMlpForward {
  SwigluMlpShape shape;
  const T* x;    // [rows, width]
  const T* w12;  // [2 hidden, width]: a's rows, then b's
  const T* b12;  // [2 hidden]
  const T* w3;   // [width, hidden]
  const T* b3;   // [width]
  T* y;          // [rows, width]
};

// All gradients are overwritten.
template <class T>
struct SwigluMlpBackward {
  SwigluMlpShape shape;
  const T *x, *w12, *b12, *w3;
  const T* dy;  // [rows, width]
  T* dx;        // may be dy
  acc_t<T>*dw12, *db12, *dw3, *db3;
  void* workspace;  // swiglu_mlp_backward_workspace(shape) bytes; undefined afterwards
};

// How the gradients of the weights are cut: blocks of 64 units, slices of the rows in tiles of 64.
inline constexpr int kMlpWidth = 128, kMlpUnits = 64, kMlpRows = 64;
inline constexpr int kMlpMakers = 2;                 // warpgroups that leave sums for the biases
inline constexpr int kMlpMostMultiprocessors = 160;  // more are left idle

// As many slices as give every multiprocessor a block.
inline int swiglu_mlp_slices(const SwigluMlpShape& s, int multiprocessors) {
  const std::int64_t tiles = (s.rows + kMlpRows - 1) / kMlpRows;
  const std::int64_t most =
      std::min(multiprocessors, kMlpMostMultiprocessors) / (s.hidden / kMlpUnits);
  return static_cast<int>(std::clamp<std::int64_t>(most, 1, tiles));
}
// Floats that a slice leaves: of the weights, and of the biases.
inline std::int64_t swiglu_mlp_weight_sums(const SwigluMlpShape& s) {
  return std::int64_t{3} * s.hidden * s.width;
}
inline int swiglu_mlp_bias_sums(const SwigluMlpShape& s) {
  return kMlpMakers * (2 * s.hidden + s.width);
}
inline std::size_t swiglu_mlp_backward_workspace(const SwigluMlpShape& s) {
  const std::int64_t slices = swiglu_mlp_slices(s, kMlpMostMultiprocessors);
  return static_cast<std::size_t>(slices * (swiglu_mlp_weight_sums(s) + swiglu_mlp_bias_sums(s))) *
         sizeof(float);
}

#if FM_CUDA
// Whether the kernels take this shape and type on this device: f16 or bf16, width 128, hidden a
// multiple of 64, compute capability 9.0 and compiled for its own instructions.
bool swiglu_mlp_fits(const CudaQueue&, const SwigluMlpShape&, DType);

// Every pointer to T is aligned to 16 bytes.
template <class T>
void swiglu_mlp_forward(CudaQueue&, const SwigluMlpForward<T>&);
template <class T>
void swiglu_mlp_backward(CudaQueue&, const SwigluMlpBackward<T>&);
#endif

}  // namespace fm
