#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;
constexpr std::int64_t kColumnGrain = 64;

template <class T>
inline T dot(const T* a, const T* b, int n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
inline void work(const RmsNormFold<T>& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t j = begin; j < end; ++j) {
    const T* w = p.w + j * p.shape.in;
    T* v = p.v + j * p.shape.in;
#pragma omp simd
    for (int c = 0; c < p.shape.in; ++c) v[c] = w[c] * p.weight[c];
  }
}

// After the product: y holds x V^T and becomes r times that.
template <class T>
inline void work(const RmsNormLinearForward<T>& p, std::int64_t begin, std::int64_t end) {
  const int in = p.shape.in, out = p.shape.out;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = p.x + row * in;
    T* y = p.y + row * out;
    const T r = 1 / std::sqrt(dot(x, x, in) / in + static_cast<T>(p.shape.eps));
    p.r[row] = r;
#pragma omp simd
    for (int j = 0; j < out; ++j) y[j] *= r;
  }
}

template <class T>
inline void work(const RmsNormScaleBackward<T>& p, std::int64_t begin, std::int64_t end) {
  const int out = p.shape.out;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* dy = p.dy + row * out;
    T* g = p.g + row * out;
    const T r = p.r[row];
    p.s[row] = r * r * dot(dy, p.y + row * out, out) / p.shape.in;
#pragma omp simd
    for (int j = 0; j < out; ++j) g[j] = r * dy[j];
  }
}

// After the product: dx holds g V and becomes g V - s x.
template <class T>
inline void work(const RmsNormLinearBackwardInput<T>& p, std::int64_t begin, std::int64_t end) {
  const int in = p.shape.in;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = p.x + row * in;
    T* dx = p.dx + row * in;
    const T s = p.s[row];
#pragma omp simd
    for (int c = 0; c < in; ++c) dx[c] -= s * x[c];
  }
}

// Columns [begin, end).
template <class T>
inline void work(const RmsNormFoldBackward<T>& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t c = begin; c < end; ++c) p.dweight[c] = 0;
  for (int j = 0; j < p.shape.out; ++j) {
    const T* w = p.w + static_cast<std::int64_t>(j) * p.shape.in;
    T* dw = p.dw + static_cast<std::int64_t>(j) * p.shape.in;
#pragma omp simd
    for (std::int64_t c = begin; c < end; ++c) {
      p.dweight[c] += dw[c] * w[c];
      dw[c] *= p.weight[c];
    }
  }
}

template <class Params>
void work_simd(const Params& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormFold<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormLinearForward<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormScaleBackward<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormLinearBackwardInput<float>& p, std::int64_t begin,
                       std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormFoldBackward<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}

LinearShape product_of(const RmsNormLinearShape& s) {
  return {.rows = s.rows, .in = s.in, .out = s.out};
}

template <class Params>
void run(CpuQueue& queue, const Params& p, std::int64_t count, std::int64_t grain) {
  rmsnorm_linear_check(p.shape);
  parallel_for(queue, count, grain,
               [&](std::int64_t begin, std::int64_t end) { work_simd(p, begin, end); });
}

}  // namespace

void rmsnorm_linear_check(const RmsNormLinearShape& s) {
  FM_CHECK(s.rows > 0 && s.in > 0 && s.out > 0,
           "[rmsnorm_linear] rows, in and out must be positive, got ", s.rows, ", ", s.in, ", ",
           s.out);
  FM_CHECK(s.eps > 0, "[rmsnorm_linear] eps must be positive, got ", s.eps);
}

template <class T>
void rmsnorm_fold(CpuQueue& queue, const RmsNormFold<T>& p) {
  run(queue, p, p.shape.out, kRowGrain);
}
template <class T>
void rmsnorm_linear_forward(CpuQueue& queue, const RmsNormLinearForward<T>& p) {
  rmsnorm_linear_check(p.shape);
  linear_forward(queue,
                 LinearForward<T, T>{
                     .shape = product_of(p.shape), .x = p.x, .w = p.v, .bias = nullptr, .y = p.y});
  run(queue, p, p.shape.rows, kRowGrain);
}
template <class T>
void rmsnorm_scale_backward(CpuQueue& queue, const RmsNormScaleBackward<T>& p) {
  run(queue, p, p.shape.rows, kRowGrain);
}
template <class T>
void rmsnorm_linear_backward_input(CpuQueue& queue, const RmsNormLinearBackwardInput<T>& p) {
  rmsnorm_linear_check(p.shape);
  linear_backward_input(
      queue, LinearBackwardInput<T>{.shape = product_of(p.shape), .dy = p.g, .w = p.v, .dx = p.dx});
  run(queue, p, p.shape.rows, kRowGrain);
}
template <class T>
void rmsnorm_fold_backward(CpuQueue& queue, const RmsNormFoldBackward<T>& p) {
  run(queue, p, p.shape.in, kColumnGrain);
}

template void rmsnorm_fold(CpuQueue&, const RmsNormFold<float>&);
template void rmsnorm_fold(CpuQueue&, const RmsNormFold<double>&);
template void rmsnorm_linear_forward(CpuQueue&, const RmsNormLinearForward<float>&);
template void rmsnorm_linear_forward(CpuQueue&, const RmsNormLinearForward<double>&);
template void rmsnorm_scale_backward(CpuQueue&, const RmsNormScaleBackward<float>&);
template void rmsnorm_scale_backward(CpuQueue&, const RmsNormScaleBackward<double>&);
template void rmsnorm_linear_backward_input(CpuQueue&, const RmsNormLinearBackwardInput<float>&);
template void rmsnorm_linear_backward_input(CpuQueue&, const RmsNormLinearBackwardInput<double>&);
template void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<float>&);
template void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<double>&);

}  // namespace fm
