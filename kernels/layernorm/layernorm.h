// LayerNorm without affine weights, then modulate by the image's shift and scale (adaLN).
//
//   y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift,  eps 1e-6, mean and variance of the row
// x is the residual stream and stays in acc_t<T>, as do the statistics. shift and scale are rows of
// a wider matrix of the image's modulations, modulation_stride elements apart. Source: Ba et al.
// 2016; Peebles and Xie 2023 (DiT), section 3.2. T is double or float on the CPU, float, f16 or
// bf16 on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct LayerNormShape {
  int batch, length, width;        // width a multiple of 8
  std::int64_t modulation_stride;  // elements between images
};

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
