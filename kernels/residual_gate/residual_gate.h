// The gated residual of an adaLN block: out = x + gate f, the gate an image's vector.
//
// x and out are the residual stream, in acc_t<T>. Backward: df = gate dout, dgate = sum over tokens
// of dout f; the gradient of x is dout itself, so it is not written. Source: Peebles and Xie 2023
// (DiT), section 3.2. T is double or float on the CPU, float, f16 or bf16 on CUDA, where arrays and
// their rows of gates begin at multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct ResidualGateShape {
  int batch, length, width;        // width a multiple of 8
  std::int64_t modulation_stride;  // elements between images' gates, a multiple of 8
};

// Throws where a shape is outside the contract. An image has fewer than 2^31 elements.
inline void check_shape(const ResidualGateShape& s) {
  FM_CHECK(s.batch > 0 && s.length > 0, "[residual_gate] batch and length must be positive, got ",
           s.batch, " and ", s.length);
  FM_CHECK(s.width > 0 && s.width % 8 == 0, "[residual_gate] width must be a multiple of 8, got ",
           s.width);
  FM_CHECK(static_cast<std::int64_t>(s.length) * s.width < std::int64_t{1} << 31,
           "[residual_gate] length times width must be below 2^31, got ", s.length, " and ",
           s.width);
  FM_CHECK(s.modulation_stride >= s.width && s.modulation_stride % 8 == 0,
           "[residual_gate] modulation_stride must be a multiple of 8 and at least the width ",
           s.width, ", got ", s.modulation_stride);
}

template <class T>
struct ResidualGateForward {
  ResidualGateShape shape;
  const acc_t<T>* x;  // [B, L, width]
  const T* f;         // [B, L, width]
  const T* gate;      // [B, width]
  acc_t<T>* out;      // [B, L, width]; may be x
};

template <class T>
struct ResidualGateBackward {
  ResidualGateShape shape;
  const acc_t<T>* dout;
  const T* f;
  const T* gate;
  T* df;     // [B, L, width], overwritten
  T* dgate;  // [B, width], images modulation_stride apart, overwritten
};

template <class T>
void residual_gate_forward(CpuQueue&, const ResidualGateForward<T>&);
template <class T>
void residual_gate_forward(CudaQueue&, const ResidualGateForward<T>&);
template <class T>
void residual_gate_backward(CpuQueue&, const ResidualGateBackward<T>&);
template <class T>
void residual_gate_backward(CudaQueue&, const ResidualGateBackward<T>&);

}  // namespace fm
