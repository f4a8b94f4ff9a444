#include <algorithm>
#include <initializer_list>

#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

// The products, where they are not fused, and the passes around them, which move bytes: 16 a thread
// and access where the shape allows it (N elements), one element otherwise.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kScaleLanes = kWarp;       // share a row of x
constexpr int kScaleBackwardLanes = 16;  // share a row of dy: 128 columns of 16 bits in one go
constexpr int kFoldRows = 32;            // rows of W that a block of the fold's backward reads

template <class T>
constexpr int kWide = 16 / sizeof(T);

template <class T>
__global__ void __launch_bounds__(kThreads) fold_kernel(Deferred<RmsNormFold<T>> deferred) {
  const RmsNormFold<T>& p = deferred.wait();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(p.shape.out) * p.shape.in) return;
  p.v[index] = narrow<T>(p.w[index] * p.weight[index % p.shape.in]);
}

// y holds x V^T and becomes r times that. Every lane takes part in the sums; a team past the last
// row has no columns.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(Deferred<RmsNormLinearForward<T>> deferred) {
  const RmsNormLinearForward<T>& p = deferred.wait();
  constexpr int teams = kThreads / kScaleLanes;
  const int lane = threadIdx.x % kScaleLanes;
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * teams + threadIdx.x / kScaleLanes;
  const bool exists = row < p.shape.rows;
  const int in = exists ? p.shape.in : 0, out = exists ? p.shape.out : 0;
  const T* x = p.x + row * p.shape.in;
  T* y = p.y + row * p.shape.out;
  float squares = 0;
#pragma unroll 2
  for (int c = lane * N; c < in; c += kScaleLanes * N) {
    float v[N];
    load_wide(v, x + c);
#pragma unroll
    for (int i = 0; i < N; ++i) squares = fmaf(v[i], v[i], squares);
  }
  const float mean = warp_sum(squares) / static_cast<float>(p.shape.in);
  const float r = rsqrtf(mean + static_cast<float>(p.shape.eps));
  if (exists && lane == 0) p.r[row] = r;
  for (int j = lane * N; j < out; j += kScaleLanes * N) {
    float v[N];
    load_wide(v, y + j);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= r;
    store_narrow(y + j, v);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    scale_backward_kernel(Deferred<RmsNormScaleBackward<T>> deferred) {
  const RmsNormScaleBackward<T>& p = deferred.wait();
  constexpr int lanes = kScaleBackwardLanes, teams = kThreads / lanes;
  const int lane = threadIdx.x % lanes;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * teams + threadIdx.x / lanes;
  const bool exists = row < p.shape.rows;
  const int out = exists ? p.shape.out : 0;
  const std::int64_t at = row * p.shape.out;
  const float r = exists ? p.r[row] : 0.0f;
  float dot = 0;
  for (int j = lane * N; j < out; j += lanes * N) {
    float dy[N], y[N];
    load_wide(dy, p.dy + at + j);
    load_wide(y, p.y + at + j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      dot = fmaf(dy[i], y[i], dot);
      dy[i] *= r;
    }
    store_narrow(p.g + at + j, dy);
  }
  dot = warp_sum(dot, lanes);
  if (exists && lane == 0) p.s[row] = r * r * dot / static_cast<float>(p.shape.in);
}

// dx holds g V and becomes g V - s x.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    subtract_kernel(Deferred<RmsNormLinearBackwardInput<T>> deferred) {
  const RmsNormLinearBackwardInput<T>& p = deferred.wait();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = index / (p.shape.in / N);
  if (row >= p.shape.rows) return;
  const float s = p.s[row];
  float x[N], dx[N];
  load_wide(x, p.x + index * N);
  load_wide(dx, p.dx + index * N);
#pragma unroll
  for (int i = 0; i < N; ++i) dx[i] = fmaf(-s, x[i], dx[i]);
  store_narrow(p.dx + index * N, dx);
}

// A block takes 32 columns, every row of them.
__global__ void __launch_bounds__(kWarp* kFoldRows)
    fold_backward_kernel(Deferred<RmsNormFoldBackward<float>> deferred) {
  const RmsNormFoldBackward<float>& p = deferred.wait();
  __shared__ float shared[kFoldRows][kWarp];
  const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp;
  const int column = static_cast<int>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (column < p.shape.in) {
    const float scale = p.weight[column];
#pragma unroll 4
    for (int j = first; j < p.shape.out; j += kFoldRows) {
      const std::int64_t at = static_cast<std::int64_t>(j) * p.shape.in + column;
      const float dv = p.dw[at];
      sum = fmaf(dv, p.w[at], sum);
      p.dw[at] = dv * scale;
    }
  }
  shared[first][lane] = sum;
  __syncthreads();
  if (first > 0 || column >= p.shape.in) return;
#pragma unroll
  for (int j = 1; j < kFoldRows; ++j) sum += shared[j][lane];
  p.dweight[column] = sum;
}

dim3 grid_of(std::int64_t count, int per_block) {
  const std::int64_t blocks = ceil_div(count, per_block);
  FM_CHECK(blocks <= kMaxGrid, "[rmsnorm_linear] too large for one launch: ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

LinearShape product_of(const RmsNormLinearShape& s) {
  return {.rows = s.rows, .in = s.in, .out = s.out};
}

template <class T>
bool vectors_fit(std::initializer_list<int> widths, std::initializer_list<const T*> arrays) {
  return std::all_of(widths.begin(), widths.end(),
                     [](int width) { return width % kWide<T> == 0; }) &&
         std::all_of(arrays.begin(), arrays.end(), [](const T* array) {
           return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
         });
}

}  // namespace

template <class T>
void rmsnorm_fold(CudaQueue& queue, const RmsNormFold<T>& p) {
  rmsnorm_linear_check(p.shape);
  launch(queue, "rmsnorm_fold", fold_kernel<T>,
         grid_of(static_cast<std::int64_t>(p.shape.out) * p.shape.in, kThreads), kThreads, 0, p);
}

template <class T>
void rmsnorm_linear_forward(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  rmsnorm_linear_check(p.shape);
  if constexpr (sizeof(T) == 2)
    if (rmsnorm_linear_forward_few_rows(queue, p) || rmsnorm_linear_forward_fused(queue, p)) return;
  linear_forward(queue,
                 LinearForward<T, T>{
                     .shape = product_of(p.shape), .x = p.x, .w = p.v, .bias = nullptr, .y = p.y});
  const bool wide = vectors_fit<T>({p.shape.in, p.shape.out}, {p.x, p.y});
  launch(queue, "rmsnorm_linear_scale", wide ? scale_kernel<kWide<T>, T> : scale_kernel<1, T>,
         grid_of(p.shape.rows, kThreads / kScaleLanes), kThreads, 0, p);
}

template <class T>
void rmsnorm_scale_backward(CudaQueue& queue, const RmsNormScaleBackward<T>& p) {
  rmsnorm_linear_check(p.shape);
  const bool wide = vectors_fit<T>({p.shape.out}, {p.dy, p.y, p.g});
  launch(queue, "rmsnorm_scale_backward",
         wide ? scale_backward_kernel<kWide<T>, T> : scale_backward_kernel<1, T>,
         grid_of(p.shape.rows, kThreads / kScaleBackwardLanes), kThreads, 0, p);
}

template <class T>
void rmsnorm_linear_backward_input(CudaQueue& queue, const RmsNormLinearBackwardInput<T>& p) {
  rmsnorm_linear_check(p.shape);
  if constexpr (sizeof(T) == 2)
    if (rmsnorm_linear_backward_input_fused(queue, p)) return;
  linear_backward_input(
      queue, LinearBackwardInput<T>{.shape = product_of(p.shape), .dy = p.g, .w = p.v, .dx = p.dx});
  const bool wide = vectors_fit<T>({p.shape.in}, {p.x, p.dx});
  const std::int64_t elements = p.shape.rows * p.shape.in;
  launch(queue, "rmsnorm_linear_subtract",
         wide ? subtract_kernel<kWide<T>, T> : subtract_kernel<1, T>,
         grid_of(wide ? elements / kWide<T> : elements, kThreads), kThreads, 0, p);
}

template <class T>
void rmsnorm_fold_backward(CudaQueue& queue, const RmsNormFoldBackward<T>& p) {
  rmsnorm_linear_check(p.shape);
  launch(queue, "rmsnorm_fold_backward", fold_backward_kernel, grid_of(p.shape.in, kWarp),
         kWarp * kFoldRows, 0, RmsNormFoldBackward<float>{p.shape, p.w, p.weight, p.dw, p.dweight});
}

template void rmsnorm_fold(CudaQueue&, const RmsNormFold<float>&);
template void rmsnorm_fold(CudaQueue&, const RmsNormFold<f16>&);
template void rmsnorm_fold(CudaQueue&, const RmsNormFold<bf16>&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<float>&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<f16>&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<bf16>&);
template void rmsnorm_scale_backward(CudaQueue&, const RmsNormScaleBackward<float>&);
template void rmsnorm_scale_backward(CudaQueue&, const RmsNormScaleBackward<f16>&);
template void rmsnorm_scale_backward(CudaQueue&, const RmsNormScaleBackward<bf16>&);
template void rmsnorm_linear_backward_input(CudaQueue&, const RmsNormLinearBackwardInput<float>&);
template void rmsnorm_linear_backward_input(CudaQueue&, const RmsNormLinearBackwardInput<f16>&);
template void rmsnorm_linear_backward_input(CudaQueue&, const RmsNormLinearBackwardInput<bf16>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<float>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<f16>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<bf16>&);

}  // namespace fm
