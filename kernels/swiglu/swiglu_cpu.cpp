#include "kernels/base/fast_math.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/swiglu/swiglu.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;

template <class T>
inline void forward_rows(const SwigluForward<T>& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t hidden = p.shape.hidden;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* a = p.ab + row * 2 * hidden;
    const T* b = a + hidden;
    T* y = p.y + row * hidden;
#pragma omp simd
    for (std::int64_t i = 0; i < hidden; ++i) y[i] = a[i] * fast_sigmoid(a[i]) * b[i];
  }
}

template <class T>
inline void backward_rows(const SwigluBackward<T>& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t hidden = p.shape.hidden;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* a = p.ab + row * 2 * hidden;
    const T* b = a + hidden;
    const T* dy = p.dy + row * hidden;
    T* da = p.dab + row * 2 * hidden;
    T* db = da + hidden;
    T* y = p.y + row * hidden;
#pragma omp simd
    for (std::int64_t i = 0; i < hidden; ++i) {
      const T x = a[i], gate = b[i], s = fast_sigmoid(x);
      const T d = dy[i], silu = x * s;
      da[i] = d * gate * s * (1 + x * (1 - s));
      db[i] = d * silu;
      y[i] = silu * gate;
    }
  }
}

FM_SIMD void forward_rows_simd(const SwigluForward<float>& p, std::int64_t begin,
                               std::int64_t end) {
  forward_rows(p, begin, end);
}
FM_SIMD void backward_rows_simd(const SwigluBackward<float>& p, std::int64_t begin,
                                std::int64_t end) {
  backward_rows(p, begin, end);
}

}  // namespace

template <class T>
void swiglu_forward(CpuQueue& queue, const SwigluForward<T>& p) {
  parallel_for(queue, p.shape.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) forward_rows_simd(p, begin, end);
    else forward_rows(p, begin, end);
  });
}

template <class T>
void swiglu_backward(CpuQueue& queue, const SwigluBackward<T>& p) {
  parallel_for(queue, p.shape.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) backward_rows_simd(p, begin, end);
    else backward_rows(p, begin, end);
  });
}

template void swiglu_forward(CpuQueue&, const SwigluForward<float>&);
template void swiglu_forward(CpuQueue&, const SwigluForward<double>&);
template void swiglu_backward(CpuQueue&, const SwigluBackward<float>&);
template void swiglu_backward(CpuQueue&, const SwigluBackward<double>&);

}  // namespace fm
