#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/fast_math.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;
constexpr std::int64_t kColumnGrain = 64;

inline float sigmoid(float x) {
  return fast_sigmoid(x);
}
inline double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

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

// o = x silu(z).
template <class T>
struct Gate {
  RmsNormLinearShape shape;
  const T *x, *z;
  T* o;
};
template <class T>
inline void work(const Gate<T>& p, std::int64_t begin, std::int64_t end) {
  const int in = p.shape.in;
  for (std::int64_t row = begin; row < end; ++row) {
    const T *x = p.x + row * in, *z = p.z + row * p.shape.z_stride;
    T* o = p.o + row * in;
#pragma omp simd
    for (int c = 0; c < in; ++c) o[c] = x[c] * z[c] * sigmoid(z[c]);
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

// dy becomes r dy; and s.
template <class T>
struct ScaleBackward {
  RmsNormLinearShape shape;
  T* dy;
  const T *y, *r;
  T* s;
};
template <class T>
inline void work(const ScaleBackward<T>& p, std::int64_t begin, std::int64_t end) {
  const int out = p.shape.out;
  for (std::int64_t row = begin; row < end; ++row) {
    T* dy = p.dy + row * out;
    const T r = p.r[row];
    p.s[row] = r * r * dot(dy, p.y + row * out, out) / p.shape.in;
#pragma omp simd
    for (int j = 0; j < out; ++j) dy[j] *= r;
  }
}

// After the product: dx holds r dy V and becomes that minus s x, or what the gate makes of it.
template <class T>
inline void work(const RmsNormLinearBackward<T>& p, std::int64_t begin, std::int64_t end) {
  const int in = p.shape.in;
  const T* const all_s = static_cast<const T*>(p.workspace);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = p.x + row * in;
    T* dx = p.dx + row * in;
    const T s = all_s[row];
    if (p.shape.gated()) {
      const T* z = p.z + row * p.shape.z_stride;
      T* dz = p.dz + row * p.shape.z_stride;
#pragma omp simd
      for (int c = 0; c < in; ++c) {
        const T gate = sigmoid(z[c]), silu = z[c] * gate, d_o = dx[c] - s * x[c] * silu;
        dx[c] = d_o * silu;
        dz[c] = d_o * x[c] * gate * (1 + z[c] * (1 - gate));
      }
    } else {
#pragma omp simd
      for (int c = 0; c < in; ++c) dx[c] -= s * x[c];
    }
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
FM_SIMD void work_simd(const ScaleBackward<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const Gate<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormLinearBackward<float>& p, std::int64_t begin,
                       std::int64_t end) {
  work(p, begin, end);
}
FM_SIMD void work_simd(const RmsNormFoldBackward<float>& p, std::int64_t begin, std::int64_t end) {
  work(p, begin, end);
}

LinearShape product_of(const RmsNormLinearShape& s) {
  return {.rows = s.rows, .in = s.in, .out = s.out};
}

template <class T>
std::size_t s_bytes(const RmsNormLinearShape& s) {
  return (sizeof(T) * static_cast<std::size_t>(s.rows) + 63) / 64 * 64;
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
  FM_CHECK(!s.gated() || s.z_stride >= s.in,
           "[rmsnorm_linear] rows of the gate must be at least in elements apart, got ", s.z_stride,
           " for ", s.in);
  FM_CHECK(s.eps > 0, "[rmsnorm_linear] eps must be positive, got ", s.eps);
}

template <class T>
void rmsnorm_fold(CpuQueue& queue, const RmsNormFold<T>& p) {
  run(queue, p, p.shape.out, kRowGrain);
}
template <class T>
std::size_t rmsnorm_linear_forward_workspace(const CpuQueue&, const RmsNormLinearShape& s) {
  return s.gated() ? sizeof(T) * static_cast<std::size_t>(s.rows) * s.in : 0;
}
template <class T>
void rmsnorm_linear_forward(CpuQueue& queue, const RmsNormLinearForward<T>& given) {
  RmsNormLinearForward<T> p = given;
  rmsnorm_linear_check(p.shape);
  if (p.shape.gated()) {
    T* const o = static_cast<T*>(p.workspace);
    run(queue, Gate<T>{p.shape, p.x, p.z, o}, p.shape.rows, kRowGrain);
    p.x = o;
  }
  linear_forward(queue,
                 LinearForward<T, T>{
                     .shape = product_of(p.shape), .x = p.x, .w = p.v, .bias = nullptr, .y = p.y});
  run(queue, p, p.shape.rows, kRowGrain);
}
// s, then what the product needs.
template <class T>
std::size_t rmsnorm_linear_backward_workspace(const CpuQueue&, const RmsNormLinearShape& s) {
  return s_bytes<T>(s) + linear_backward_weight_workspace(product_of(s));
}
// dx has room for o until it is wanted.
template <class T>
void rmsnorm_linear_backward(CpuQueue& queue, const RmsNormLinearBackward<T>& p) {
  rmsnorm_linear_check(p.shape);
  T* const s = static_cast<T*>(p.workspace);
  run(queue, ScaleBackward<T>{p.shape, p.dy, p.y, p.r, s}, p.shape.rows, kRowGrain);
  if (p.shape.gated()) run(queue, Gate<T>{p.shape, p.x, p.z, p.dx}, p.shape.rows, kRowGrain);
  linear_backward_weight(
      queue,
      LinearBackwardWeight<T>{.shape = product_of(p.shape),
                              .dy = p.dy,
                              .x = p.shape.gated() ? p.dx : p.x,
                              .dw = p.dv,
                              .dbias = nullptr,
                              .workspace = static_cast<char*>(p.workspace) + s_bytes<T>(p.shape)});
  linear_backward_input(queue, LinearBackwardInput<T>{
                                   .shape = product_of(p.shape), .dy = p.dy, .w = p.v, .dx = p.dx});
  run(queue, p, p.shape.rows, kRowGrain);
}
template <class T>
void rmsnorm_fold_backward(CpuQueue& queue, const RmsNormFoldBackward<T>& p) {
  run(queue, p, p.shape.in, kColumnGrain);
}

template void rmsnorm_fold(CpuQueue&, const RmsNormFold<float>&);
template void rmsnorm_fold(CpuQueue&, const RmsNormFold<double>&);
template std::size_t rmsnorm_linear_forward_workspace<float>(const CpuQueue&,
                                                             const RmsNormLinearShape&);
template void rmsnorm_linear_forward(CpuQueue&, const RmsNormLinearForward<float>&);
template std::size_t rmsnorm_linear_forward_workspace<double>(const CpuQueue&,
                                                              const RmsNormLinearShape&);
template void rmsnorm_linear_forward(CpuQueue&, const RmsNormLinearForward<double>&);
template std::size_t rmsnorm_linear_backward_workspace<float>(const CpuQueue&,
                                                              const RmsNormLinearShape&);
template void rmsnorm_linear_backward(CpuQueue&, const RmsNormLinearBackward<float>&);
template std::size_t rmsnorm_linear_backward_workspace<double>(const CpuQueue&,
                                                               const RmsNormLinearShape&);
template void rmsnorm_linear_backward(CpuQueue&, const RmsNormLinearBackward<double>&);
template void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<float>&);
template void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<double>&);

}  // namespace fm
