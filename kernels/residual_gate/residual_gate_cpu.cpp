#include <algorithm>

#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/residual_gate/residual_gate.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 64;

template <class T>
inline void forward_rows(const ResidualGateForward<T>& p, std::int64_t begin, std::int64_t end) {
  const int width = p.shape.width;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = p.x + row * width;
    const T* f = p.f + row * width;
    const T* gate = p.gate + row / p.shape.length * p.shape.modulation_stride;
    T* out = p.out + row * width;
#pragma omp simd
    for (int c = 0; c < width; ++c) out[c] = x[c] + gate[c] * f[c];
  }
}

template <class T>
inline void backward_image(const ResidualGateBackward<T>& p, std::int64_t image) {
  const int width = p.shape.width;
  const T* gate = p.gate + image * p.shape.modulation_stride;
  T* dgate = p.dgate + image * p.shape.modulation_stride;
  std::fill_n(dgate, width, T(0));
  for (int token = 0; token < p.shape.length; ++token) {
    const std::int64_t row = (image * p.shape.length + token) * width;
    const T* dout = p.dout + row;
    const T* f = p.f + row;
    T* df = p.df + row;
#pragma omp simd
    for (int c = 0; c < width; ++c) {
      dgate[c] += dout[c] * f[c];
      df[c] = gate[c] * dout[c];
    }
  }
}

FM_SIMD void forward_rows_simd(const ResidualGateForward<float>& p, std::int64_t begin,
                               std::int64_t end) {
  forward_rows(p, begin, end);
}
FM_SIMD void backward_image_simd(const ResidualGateBackward<float>& p, std::int64_t image) {
  backward_image(p, image);
}

}  // namespace

template <class T>
void residual_gate_forward(CpuQueue& queue, const ResidualGateForward<T>& p) {
  check_shape(p.shape);
  const std::int64_t rows = static_cast<std::int64_t>(p.shape.batch) * p.shape.length;
  parallel_for(queue, rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) forward_rows_simd(p, begin, end);
    else forward_rows(p, begin, end);
  });
}

// A piece is an image, which owns its column sums.
template <class T>
void residual_gate_backward(CpuQueue& queue, const ResidualGateBackward<T>& p) {
  check_shape(p.shape);
  parallel_for(queue, p.shape.batch, 1, [&](std::int64_t image, std::int64_t) {
    if constexpr (std::is_same_v<T, float>) backward_image_simd(p, image);
    else backward_image(p, image);
  });
}

template void residual_gate_forward(CpuQueue&, const ResidualGateForward<float>&);
template void residual_gate_forward(CpuQueue&, const ResidualGateForward<double>&);
template void residual_gate_backward(CpuQueue&, const ResidualGateBackward<float>&);
template void residual_gate_backward(CpuQueue&, const ResidualGateBackward<double>&);

}  // namespace fm
