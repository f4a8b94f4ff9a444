#include "kernels/activation/activation.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"

namespace fm {
namespace {

constexpr int kThreads = 256;
template <class T>
constexpr int kWide = 16 / sizeof(T);  // elements of a 16-byte access

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}
__device__ __forceinline__ float silu(float x) {
  return x * sigmoid(x);
}
__device__ __forceinline__ float silu_gradient(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

// A thread owns kWide neighbours; the last thread takes what is left one by one.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Deferred<SiluForward<T>> deferred) {
  const SiluForward<T>& p = deferred.wait();
  constexpr int wide = kWide<T>;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * wide;
  if (first + wide <= p.count) {
    float x[wide];
    load_wide(x, p.x + first);
#pragma unroll
    for (int i = 0; i < wide; ++i) x[i] = silu(x[i]);
    store_narrow(p.y + first, x);
  } else {
    for (std::int64_t i = first; i < p.count; ++i) p.y[i] = narrow<T>(silu(widen(p.x[i])));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Deferred<SiluBackward<T>> deferred) {
  const SiluBackward<T>& p = deferred.wait();
  constexpr int wide = kWide<T>;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * wide;
  if (first + wide <= p.count) {
    float x[wide], dy[wide];
    load_wide(x, p.x + first);
    load_wide(dy, p.dy + first);
#pragma unroll
    for (int i = 0; i < wide; ++i) dy[i] *= silu_gradient(x[i]);
    store_narrow(p.dx + first, dy);
  } else {
    for (std::int64_t i = first; i < p.count; ++i)
      p.dx[i] = narrow<T>(widen(p.dy[i]) * silu_gradient(widen(p.x[i])));
  }
}

template <class T>
unsigned grid_of(std::int64_t count) {
  check_silu_count(count);
  const std::int64_t blocks = ceil_div(count, kThreads * kWide<T>);
  FM_CHECK(blocks <= kMaxGrid, "[silu] too large for one launch, got ", count, " elements");
  return static_cast<unsigned>(blocks);
}

}  // namespace

template <class T>
void silu_forward(CudaQueue& queue, const SiluForward<T>& p) {
  launch(queue, "silu_forward", forward_kernel<T>, grid_of<T>(p.count), kThreads, 0, p);
}

template <class T>
void silu_backward(CudaQueue& queue, const SiluBackward<T>& p) {
  launch(queue, "silu_backward", backward_kernel<T>, grid_of<T>(p.count), kThreads, 0, p);
}

template void silu_forward(CudaQueue&, const SiluForward<float>&);
template void silu_forward(CudaQueue&, const SiluForward<f16>&);
template void silu_forward(CudaQueue&, const SiluForward<bf16>&);
template void silu_backward(CudaQueue&, const SiluBackward<float>&);
template void silu_backward(CudaQueue&, const SiluBackward<f16>&);
template void silu_backward(CudaQueue&, const SiluBackward<bf16>&);

}  // namespace fm
