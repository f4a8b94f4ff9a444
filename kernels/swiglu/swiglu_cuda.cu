#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/swiglu/swiglu.h"

namespace fm {
namespace {

// A block takes kRows rows and kWarp accesses of their columns.
constexpr int kRows = 8;
template <class T>
constexpr int kWide = 16 / sizeof(T);  // elements of an access; hidden is a multiple of it

// The approximate reciprocal is within 1 ulp, and 0 for an infinite argument, as it should be.
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// The first of this thread's columns of a row of `ab`, and the row.
struct Place {
  std::int64_t row;
  int column;
  template <class T>
  __device__ static Place of_thread() {
    return {static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.y,
            static_cast<int>(blockIdx.y * kWarp + threadIdx.x) * kWide<T>};
  }
  __device__ bool inside(const SwigluShape& s) const { return row < s.rows && column < s.hidden; }
};

template <class T>
__global__ void __launch_bounds__(kWarp* kRows) forward_kernel(SwigluForward<T> p) {
  const auto [row, column] = Place::of_thread<T>();
  if (!Place{row, column}.inside(p.shape)) return;
  const T* ab = p.ab + row * 2 * p.shape.hidden + column;
  float a[kWide<T>], b[kWide<T>], y[kWide<T>];
  load_wide(a, ab);
  load_wide(b, ab + p.shape.hidden);
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) y[i] = a[i] * sigmoid(a[i]) * b[i];
  store_narrow(p.y + row * p.shape.hidden + column, y);
}

template <class T>
__global__ void __launch_bounds__(kWarp* kRows) backward_kernel(SwigluBackward<T> p) {
  const auto [row, column] = Place::of_thread<T>();
  if (!Place{row, column}.inside(p.shape)) return;
  const std::int64_t at_y = row * p.shape.hidden + column, at_a = at_y + row * p.shape.hidden;
  const std::int64_t at_b = at_a + p.shape.hidden;
  float a[kWide<T>], b[kWide<T>], y[kWide<T>];
  load_wide(a, p.ab + at_a);
  load_wide(b, p.ab + at_b);
  load_wide(y, p.dy + at_y);
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    const float s = sigmoid(a[i]), silu = a[i] * s, dy = y[i];
    y[i] = silu * b[i];
    a[i] = dy * b[i] * s * (1.0f + a[i] * (1.0f - s));
    b[i] = dy * silu;
  }
  store_narrow(p.dab + at_a, a);
  store_narrow(p.dab + at_b, b);
  store_narrow(p.y + at_y, y);
}

template <class T>
dim3 grid_of(const SwigluShape& shape) {
  const std::int64_t blocks = ceil_div(shape.rows, kRows);
  FM_CHECK(blocks <= kMaxGrid, "[swiglu] too many rows for one launch, got ", shape.rows);
  return dim3(static_cast<unsigned>(blocks),
              static_cast<unsigned>(ceil_div(shape.hidden, kWarp * kWide<T>)));
}

}  // namespace

template <class T>
void swiglu_forward(CudaQueue& queue, const SwigluForward<T>& p) {
  launch(queue, "swiglu_forward", forward_kernel<T>, grid_of<T>(p.shape), dim3(kWarp, kRows), 0, p);
}

template <class T>
void swiglu_backward(CudaQueue& queue, const SwigluBackward<T>& p) {
  launch(queue, "swiglu_backward", backward_kernel<T>, grid_of<T>(p.shape), dim3(kWarp, kRows), 0,
         p);
}

template void swiglu_forward(CudaQueue&, const SwigluForward<float>&);
template void swiglu_forward(CudaQueue&, const SwigluForward<f16>&);
template void swiglu_forward(CudaQueue&, const SwigluForward<bf16>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<float>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<f16>&);
template void swiglu_backward(CudaQueue&, const SwigluBackward<bf16>&);

}  // namespace fm
