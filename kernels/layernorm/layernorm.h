// LayerNorm without affine weights, then modulate by the image's shift and scale (adaLN).
//
//   y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift,  eps 1e-6, mean and variance of the row
// x is the residual stream and stays in acc_t<T>, as do the statistics. shift and scale are rows of
// a wider matrix of the image's modulations, modulation_stride elements apart. Source: Ba et al.
// 2016; Peebles and Xie 2023 (DiT), section 3.2.
//
// Backward, xh = (x - mean) rstd, g = dy (1 + scale), means over the row:
//   dx = rstd (g - mean(g) - xh mean(g xh)),  dshift = sum of dy,  dscale = sum of dy xh over
//   tokens
// with mean and rstd computed again from x, so that nothing is saved. T is double or float on the
// CPU, float, f16 or bf16 on CUDA, where arrays and their rows of modulations begin at multiples of
// 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct LayerNormShape {
  int batch, length, width;        // width a multiple of 8, at most 4096
  std::int64_t modulation_stride;  // elements between images, a multiple of 8
};

inline constexpr double kLayerNormEps = 1e-6;

// Throws where a shape is outside the contract.
inline void check_shape(const LayerNormShape& s) {
  FM_CHECK(s.batch > 0 && s.length > 0, "[layernorm] batch and length must be positive, got ",
           s.batch, " and ", s.length);
  FM_CHECK(s.width > 0 && s.width % 8 == 0 && s.width <= 4096,
           "[layernorm] width must be a multiple of 8, at most 4096, got ", s.width);
  FM_CHECK(s.modulation_stride >= s.width && s.modulation_stride % 8 == 0,
           "[layernorm] modulation_stride must be a multiple of 8 and at least the width ", s.width,
           ", got ", s.modulation_stride);
}

template <class T>
struct LayerNormForward {
  LayerNormShape shape;
  const acc_t<T>* x;  // [B, L, width]
  const T* shift;     // [B, width]
  const T* scale;     // [B, width]
  T* y;               // [B, L, width]
};

template <class T>
struct LayerNormBackward {
  LayerNormShape shape;
  const acc_t<T>* x;
  const T* scale;
  const T* dy;
  acc_t<T>* dx;
  bool accumulate;  // true: dx +=
  T* dshift;        // [B, width], images modulation_stride apart, overwritten
  T* dscale;
};

template <class T>
void layernorm_forward(CpuQueue&, const LayerNormForward<T>&);
template <class T>
void layernorm_forward(CudaQueue&, const LayerNormForward<T>&);
template <class T>
void layernorm_backward(CpuQueue&, const LayerNormBackward<T>&);
template <class T>
void layernorm_backward(CudaQueue&, const LayerNormBackward<T>&);

}  // namespace fm
