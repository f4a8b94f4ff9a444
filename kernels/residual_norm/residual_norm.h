// What lies between two residual branches of an adaLN block, in one pass over the stream: the gated
// sum of the branch behind, and the LayerNorm and modulation of the branch ahead.
//
//   out = x + gate f
//   y = (out - mean) / sqrt(var + eps) * (1 + scale) + shift,  eps 1e-6, mean and variance of the
//   row
// X, the type of the residual stream, is acc_t<T> or T; out is rounded to it before its statistics
// are taken, in acc_t<T>. gate, shift and scale are an image's vectors: rows of wider matrices of
// modulations. Source: Ba et al. 2016; Peebles and Xie 2023 (DiT), section 3.2.
//
// Backward, xh = (out - mean) rstd, g = dy (1 + scale), means over the row, sums over an image's
// tokens, dout the gradient of out from its later readers:
//   dx = dout + rstd (g - mean(g) - xh mean(g xh)),  df = gate dx,
//   dgate = sum of dx f,  dshift = sum of dy,  dscale = sum of dy xh
// with mean and rstd computed again from out, so that nothing else is saved. <T, X> is <double,
// double> or <float, float> on the CPU, <float, float> or T in f16, bf16 with X = float or T on
// CUDA, where arrays and their rows of modulations begin at multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct ResidualNormShape {
  int batch, length, width;  // width a multiple of 8, at most 4096
  // Elements between images' shifts and scales, and between their gates: multiples of 8, at least
  // the width; forward also 0, where all images share one row.
  std::int64_t modulation_stride, gate_stride;
};

inline constexpr double kLayerNormEps = 1e-6;

// Throws where a shape is outside the contract.
inline void check_shape(const ResidualNormShape& s, bool may_share = false) {
  FM_CHECK(s.batch > 0 && s.length > 0, "[residual_norm] batch and length must be positive, got ",
           s.batch, " and ", s.length);
  FM_CHECK(s.width > 0 && s.width % 8 == 0 && s.width <= 4096,
           "[residual_norm] width must be a multiple of 8, at most 4096, got ", s.width);
  FM_CHECK(static_cast<std::int64_t>(s.length) * s.width < std::int64_t{1} << 31,
           "[residual_norm] length times width must be below 2^31, got ", s.length, " and ",
           s.width);
  for (const std::int64_t stride : {s.modulation_stride, s.gate_stride})
    FM_CHECK((stride >= s.width && stride % 8 == 0) || (may_share && stride == 0),
             "[residual_norm] strides must be multiples of 8 and at least the width ", s.width,
             may_share ? ", or 0" : "", ", got ", stride);
}

template <class T, class X>
struct ResidualNormForward {
  ResidualNormShape shape;
  const X* x;      // [B, L, width]
  const T* f;      // [B, L, width]; null: no branch is behind, out is x and is not written
  const T* gate;   // [B, width]
  const T* shift;  // [B, width]
  const T* scale;  // [B, width]
  X* out;          // [B, L, width]; may be x
  T* y;            // [B, L, width]
};

template <class T, class X>
struct ResidualNormBackward {
  ResidualNormShape shape;
  const X* out;
  const T* f;  // null: no branch is behind, df and dgate are not written
  const T* gate;
  const T* scale;
  const T* dy;
  X* dx;            // [B, L, width], where dout is found
  bool accumulate;  // false: dout is zero, whatever dx holds
  T* df;            // [B, L, width], overwritten; may be dy
  T* dgate;         // [B, width], images gate_stride apart, overwritten
  T* dshift;        // [B, width], images modulation_stride apart, overwritten
  T* dscale;
};

template <class T, class X>
void residual_norm_forward(CpuQueue&, const ResidualNormForward<T, X>&);
template <class T, class X>
void residual_norm_forward(CudaQueue&, const ResidualNormForward<T, X>&);
template <class T, class X>
void residual_norm_backward(CpuQueue&, const ResidualNormBackward<T, X>&);
template <class T, class X>
void residual_norm_backward(CudaQueue&, const ResidualNormBackward<T, X>&);

}  // namespace fm
