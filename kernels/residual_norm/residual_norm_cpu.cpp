#include <algorithm>
#include <cmath>

#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/residual_norm/residual_norm.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 64;

template <class T>
struct Statistics {
  T mean, rstd;
};

// The variance is taken about the mean: E[x^2] - mean^2 would cancel in rows far from zero.
template <class T>
inline Statistics<T> statistics(const T* x, int width) {
  T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < width; ++c) sum += x[c];
  const T mean = sum / static_cast<T>(width);
#pragma omp simd reduction(+ : squares)
  for (int c = 0; c < width; ++c) squares += (x[c] - mean) * (x[c] - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<T>(width) + static_cast<T>(kLayerNormEps))};
}

template <class T>
inline void forward_rows(const ResidualNormForward<T, T>& p, std::int64_t begin, std::int64_t end) {
  const int width = p.shape.width;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t image = row / p.shape.length;
    const T* x = p.x + row * width;
    const T* shift = p.shift + image * p.shape.modulation_stride;
    const T* scale = p.scale + image * p.shape.modulation_stride;
    T* y = p.y + row * width;
    if (p.f) {
      const T* f = p.f + row * width;
      const T* gate = p.gate + image * p.shape.gate_stride;
      T* out = p.out + row * width;
#pragma omp simd
      for (int c = 0; c < width; ++c) out[c] = x[c] + gate[c] * f[c];
      x = out;
    }
    const Statistics<T> row_statistics = statistics(x, width);
    const T mean = row_statistics.mean, rstd = row_statistics.rstd;
#pragma omp simd
    for (int c = 0; c < width; ++c) y[c] = (x[c] - mean) * rstd * (1 + scale[c]) + shift[c];
  }
}

template <class T>
inline void backward_image(const ResidualNormBackward<T, T>& p, std::int64_t image) {
  const int width = p.shape.width;
  const T* scale = p.scale + image * p.shape.modulation_stride;
  T* dshift = p.dshift + image * p.shape.modulation_stride;
  T* dscale = p.dscale + image * p.shape.modulation_stride;
  std::fill_n(dshift, width, T(0));
  std::fill_n(dscale, width, T(0));
  if (p.f) std::fill_n(p.dgate + image * p.shape.gate_stride, width, T(0));
  for (int token = 0; token < p.shape.length; ++token) {
    const std::int64_t row = (image * p.shape.length + token) * width;
    const T* x = p.out + row;
    const T* dy = p.dy + row;
    T* dx = p.dx + row;
    const Statistics<T> row_statistics = statistics(x, width);
    const T mean = row_statistics.mean, rstd = row_statistics.rstd;

    T sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
    for (int c = 0; c < width; ++c) {
      const T g = dy[c] * (1 + scale[c]);
      sum_g += g;
      sum_gx += g * ((x[c] - mean) * rstd);
    }
    const T mean_g = sum_g / static_cast<T>(width), mean_gx = sum_gx / static_cast<T>(width);
    if (!p.accumulate) std::fill_n(dx, width, T(0));
#pragma omp simd
    for (int c = 0; c < width; ++c) {
      const T xh = (x[c] - mean) * rstd;
      dx[c] += rstd * (dy[c] * (1 + scale[c]) - mean_g - xh * mean_gx);
      dshift[c] += dy[c];
      dscale[c] += dy[c] * xh;
    }
    if (!p.f) continue;
    const T* f = p.f + row;
    const T* gate = p.gate + image * p.shape.gate_stride;
    T* df = p.df + row;
    T* dgate = p.dgate + image * p.shape.gate_stride;
#pragma omp simd
    for (int c = 0; c < width; ++c) {
      df[c] = gate[c] * dx[c];
      dgate[c] += dx[c] * f[c];
    }
  }
}

FM_SIMD void forward_rows_simd(const ResidualNormForward<float, float>& p, std::int64_t begin,
                               std::int64_t end) {
  forward_rows(p, begin, end);
}
FM_SIMD void backward_image_simd(const ResidualNormBackward<float, float>& p, std::int64_t image) {
  backward_image(p, image);
}

}  // namespace

template <class T, class X>
void residual_norm_forward(CpuQueue& queue, const ResidualNormForward<T, X>& p) {
  check_shape(p.shape, true);
  const std::int64_t rows = static_cast<std::int64_t>(p.shape.batch) * p.shape.length;
  parallel_for(queue, rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) forward_rows_simd(p, begin, end);
    else forward_rows(p, begin, end);
  });
}

// A piece is an image, which owns its column sums.
template <class T, class X>
void residual_norm_backward(CpuQueue& queue, const ResidualNormBackward<T, X>& p) {
  check_shape(p.shape);
  parallel_for(queue, p.shape.batch, 1, [&](std::int64_t image, std::int64_t) {
    if constexpr (std::is_same_v<T, float>) backward_image_simd(p, image);
    else backward_image(p, image);
  });
}

template void residual_norm_forward(CpuQueue&, const ResidualNormForward<float, float>&);
template void residual_norm_forward(CpuQueue&, const ResidualNormForward<double, double>&);
template void residual_norm_backward(CpuQueue&, const ResidualNormBackward<float, float>&);
template void residual_norm_backward(CpuQueue&, const ResidualNormBackward<double, double>&);

}  // namespace fm
