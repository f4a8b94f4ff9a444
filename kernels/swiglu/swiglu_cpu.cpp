#include <cmath>

#include "kernels/base/parallel_for.h"
#include "kernels/swiglu/swiglu.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;

}  // namespace

template <class T>
void swiglu_forward(CpuQueue& queue, const SwigluForward<T>& p) {
  const std::int64_t hidden = p.shape.hidden;
  parallel_for(queue, p.shape.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const T* a = p.ab + row * 2 * hidden;
      const T* b = a + hidden;
      T* y = p.y + row * hidden;
      for (std::int64_t i = 0; i < hidden; ++i) y[i] = a[i] / (1 + std::exp(-a[i])) * b[i];
    }
  });
}

template <class T>
void swiglu_backward(CpuQueue& queue, const SwigluBackward<T>& p) {
  const std::int64_t hidden = p.shape.hidden;
  parallel_for(queue, p.shape.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const T* a = p.ab + row * 2 * hidden;
      const T* b = a + hidden;
      const T* dy = p.dy + row * hidden;
      T* da = p.dab + row * 2 * hidden;
      T* db = da + hidden;
      for (std::int64_t i = 0; i < hidden; ++i) {
        const T x = a[i], gate = b[i], s = 1 / (1 + std::exp(-x));
        da[i] = dy[i] * gate * s * (1 + x * (1 - s));
        db[i] = dy[i] * x * s;
      }
    }
  });
}

template void swiglu_forward(CpuQueue&, const SwigluForward<float>&);
template void swiglu_forward(CpuQueue&, const SwigluForward<double>&);
template void swiglu_backward(CpuQueue&, const SwigluBackward<float>&);
template void swiglu_backward(CpuQueue&, const SwigluBackward<double>&);

}  // namespace fm
