#include <algorithm>

#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/swiglu/swiglu.h"

namespace fm {
namespace {

constexpr int kThreads = 256;
template <class T>
constexpr int kWide = sizeof(T) == 2
                          ? 8
                          : 4;  // elements of a 16-byte access; hidden is a multiple of 8

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

// A thread owns kWide neighbouring hidden units of one row.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(SwigluForward<T> p) {
  constexpr int wide = kWide<T>;
  const int per_row = p.shape.hidden / wide;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.shape.rows * per_row) return;
  const std::int64_t row = index / per_row, column = index % per_row * wide;
  float a[wide], b[wide], y[wide];
  load_wide(a, p.ab + row * 2 * p.shape.hidden + column);
  load_wide(b, p.ab + (row * 2 + 1) * p.shape.hidden + column);
#pragma unroll
  for (int i = 0; i < wide; ++i) y[i] = a[i] * sigmoid(a[i]) * b[i];
  store_narrow(p.y + row * p.shape.hidden + column, y);
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(SwigluBackward<T> p) {
  constexpr int wide = kWide<T>;
  const int per_row = p.shape.hidden / wide;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.shape.rows * per_row) return;
  const std::int64_t row = index / per_row, column = index % per_row * wide;
  const std::int64_t at_a = row * 2 * p.shape.hidden + column, at_b = at_a + p.shape.hidden;
  float a[wide], b[wide], dy[wide];
  load_wide(a, p.ab + at_a);
  load_wide(b, p.ab + at_b);
  load_wide(dy, p.dy + row * p.shape.hidden + column);
#pragma unroll
  for (int i = 0; i < wide; ++i) {
    const float x = a[i], s = sigmoid(x);
    a[i] = dy[i] * b[i] * s * (1.0f + x * (1.0f - s));
    b[i] = dy[i] * x * s;
  }
  store_narrow(p.dab + at_a, a);
  store_narrow(p.dab + at_b, b);
}

template <class T>
dim3 grid_of(const SwigluShape& shape) {
  return dim3(static_cast<unsigned>(ceil_div(shape.rows * (shape.hidden / kWide<T>), kThreads)));
}

}  // namespace

template <class T>
void swiglu_forward(CudaQueue& queue, const SwigluForward<T>& p) {
  launch(queue, "swiglu_forward", forward_kernel<T>, grid_of<T>(p.shape), kThreads, 0, p);
}

template <class T>
void swiglu_backward(CudaQueue& queue, const SwigluBackward<T>& p) {
  launch(queue, "swiglu_backward", backward_kernel<T>, grid_of<T>(p.shape), kThreads, 0, p);
}

template void swiglu_forward(CudaQueue&, const SwigluForward<float>&);
template void swiglu_forward(CudaQueue&, const SwigluForward<f16>&);
template void swiglu_forward(CudaQueue&, const SwigluForward<bf16>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<float>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<f16>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<bf16>&);

}  // namespace fm
