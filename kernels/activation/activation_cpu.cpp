#include "kernels/activation/activation.h"
#include "kernels/base/fast_math.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 1 << 13;

template <class T>
inline void forward_range(const SiluForward<T>& p, std::int64_t begin, std::int64_t end) {
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) p.y[i] = p.x[i] * fast_sigmoid(p.x[i]);
}

template <class T>
inline void backward_range(const SiluBackward<T>& p, std::int64_t begin, std::int64_t end) {
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const T x = p.x[i], s = fast_sigmoid(x);
    p.dx[i] = p.dy[i] * s * (1 + x * (1 - s));
  }
}

FM_SIMD void forward_range_simd(const SiluForward<float>& p, std::int64_t begin, std::int64_t end) {
  forward_range(p, begin, end);
}
FM_SIMD void backward_range_simd(const SiluBackward<float>& p, std::int64_t begin,
                                 std::int64_t end) {
  backward_range(p, begin, end);
}

}  // namespace

template <class T>
void silu_forward(CpuQueue& queue, const SiluForward<T>& p) {
  check_silu_count(p.count);
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) forward_range_simd(p, begin, end);
    else forward_range(p, begin, end);
  });
}

template <class T>
void silu_backward(CpuQueue& queue, const SiluBackward<T>& p) {
  check_silu_count(p.count);
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) backward_range_simd(p, begin, end);
    else backward_range(p, begin, end);
  });
}

template void silu_forward(CpuQueue&, const SiluForward<float>&);
template void silu_forward(CpuQueue&, const SiluForward<double>&);
template void silu_backward(CpuQueue&, const SiluBackward<float>&);
template void silu_backward(CpuQueue&, const SiluBackward<double>&);

}  // namespace fm
