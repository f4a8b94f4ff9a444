// Depthwise causal convolution over the tokens, then SiLU; every direction in one launch.
//
// Channel c belongs to direction c / (channels / directions). Tap width-1 is the current token, tap
// width-1-k the one k before it in the direction's own order (direction 1 runs last to first);
// before the start there are zeros.
//   s_t = bias + sum_k weight[k] x_{t-(width-1)+k},  u_t = silu(s_t)
// Backward reads x again and recomputes s; nothing else is saved:
//   ds_t = du_t silu'(s_t),  dx_t = sum_k weight[k] ds_{t+(width-1)-k},
//   dweight[k] = sum ds_t x_{t-(width-1)+k},  dbias = sum ds_t  (over images and tokens)
// Source: Gu and Dao 2023, "Mamba", section 3.4. T is double or float on the CPU, float, f16 or
// bf16 on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

constexpr int kConvMaxWidth = 8;

struct ConvShape {
  int batch, length, channels;
  int directions;  // 1 or 2
  int width;       // 2 to kConvMaxWidth
};

template <class T>
struct ConvForward {
  ConvShape shape;
  const T* x;  // [B, L, channels], tokens x_stride elements apart
  std::int64_t x_stride;
  const acc_t<T>* weight;  // [channels, width]
  const acc_t<T>* bias;    // [channels]
  T* u;                    // [B, L, channels], dense
};

template <class T>
struct ConvBackward {
  ConvShape shape;
  const T* x;
  std::int64_t x_stride;
  const acc_t<T>* weight;
  const acc_t<T>* bias;
  const T* du;        // [B, L, channels], dense
  T* dx;              // tokens x_stride apart, overwritten; what lies between is left alone
  acc_t<T>* dweight;  // [channels, width], overwritten
  acc_t<T>* dbias;    // [channels], overwritten
  void* workspace;    // conv_backward_workspace<T>(shape) bytes
};

// Throws Fault::usage for shapes outside the contract; every entry point calls it.
void conv_check(const ConvShape&, std::int64_t x_stride);

// The weight gradients are summed in two stages: over the tokens of a piece (an image, or
// kConvPieceTokens of it), then over the pieces. The workspace is [pieces, width + 1, channels].
constexpr int kConvPieceTokens = 256;
constexpr std::int64_t conv_pieces(const ConvShape& s) {
  return static_cast<std::int64_t>(s.batch) *
         ((s.length + kConvPieceTokens - 1) / kConvPieceTokens);
}

template <class T>
std::size_t conv_backward_workspace(const ConvShape&);

template <class T>
void conv_forward(CpuQueue&, const ConvForward<T>&);
template <class T>
void conv_forward(CudaQueue&, const ConvForward<T>&);
template <class T>
void conv_backward(CpuQueue&, const ConvBackward<T>&);
template <class T>
void conv_backward(CudaQueue&, const ConvBackward<T>&);

}  // namespace fm
