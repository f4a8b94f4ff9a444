#include <algorithm>
#include <initializer_list>

#include "kernels/base/approx.cuh"
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

// The backward pass of separate products.
template <class T>
struct Apart {
  RmsNormLinearBackward<T> p;
  float* s;
};

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

// g = r dy in dy's place, and s.
template <int N, class T>
__global__ void __launch_bounds__(kThreads) scale_backward_kernel(Deferred<Apart<T>> deferred) {
  const Apart<T>& args = deferred.wait();
  const RmsNormLinearBackward<T>& p = args.p;
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
    store_narrow(p.dy + at + j, dy);
  }
  dot = warp_sum(dot, lanes);
  if (exists && lane == 0) args.s[row] = r * r * dot / static_cast<float>(p.shape.in);
}

// N elements of a row of a gate and of x, and what they make.
template <int N, class T>
struct Gated {
  float x[N], silu[N], slope[N];  // slope: silu'

  __device__ __forceinline__ Gated(const T* from, const T* z_from) {
    float z[N];
    load_wide(x, from);
    load_wide(z, z_from);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float gate = sigmoid_approx(z[i]);
      silu[i] = z[i] * gate;
      slope[i] = fmaf(silu[i], 1.0f - gate, gate);
    }
  }
};

// o = x silu(z), dense.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(RmsNormLinearShape s, const T* x, const T* z, T* o) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int pieces = s.in / N;
  const std::int64_t row = index / pieces;
  if (row >= s.rows) return;
  Gated<N, T> own(x + index * N, z + row * s.z_stride + (index - row * pieces) * N);
#pragma unroll
  for (int i = 0; i < N; ++i) own.x[i] *= own.silu[i];
  store_narrow(o + index * N, own.x);
}

// dx holds g V and becomes g V - s x, or what the gate makes of it.
template <int N, class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(Deferred<Apart<T>> deferred) {
  const Apart<T>& args = deferred.wait();
  const RmsNormLinearBackward<T>& p = args.p;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int pieces = p.shape.in / N;
  const std::int64_t row = index / pieces;
  if (row >= p.shape.rows) return;
  const float s = args.s[row];
  float dx[N];
  load_wide(dx, p.dx + index * N);
  if (p.z) {
    const std::int64_t at = row * p.shape.z_stride + (index - row * pieces) * N;
    const Gated<N, T> own(p.x + index * N, p.z + at);
    float dz[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d_o = fmaf(-s, own.x[i] * own.silu[i], dx[i]);
      dx[i] = d_o * own.silu[i];
      dz[i] = d_o * own.x[i] * own.slope[i];
    }
    store_narrow(p.dz + at, dz);
  } else {
    float x[N];
    load_wide(x, p.x + index * N);
#pragma unroll
    for (int i = 0; i < N; ++i) dx[i] = fmaf(-s, x[i], dx[i]);
  }
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
bool vectors_fit(std::initializer_list<std::int64_t> widths,
                 std::initializer_list<const T*> arrays) {
  return std::all_of(widths.begin(), widths.end(),
                     [](std::int64_t width) { return width % kWide<T> == 0; }) &&
         std::all_of(arrays.begin(), arrays.end(), [](const T* array) {
           return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
         });
}

// Room for s, to where the next part is aligned.
std::size_t s_bytes(const RmsNormLinearShape& s) {
  return (sizeof(float) * static_cast<std::size_t>(s.rows) + 255) / 256 * 256;
}

// A thread for each of the elements of x, or for as many as it takes at a time.
template <class T>
dim3 grid_of_elements(const RmsNormLinearShape& s, bool wide) {
  return grid_of(s.rows * (s.in / (wide ? kWide<T> : 1)), kThreads);
}

template <class T>
void gate(CudaQueue& queue, const RmsNormLinearShape& s, const T* x, const T* z, T* o) {
  const bool wide = vectors_fit<T>({s.in, s.z_stride}, {x, z, o});
  launch(queue, "rmsnorm_linear_gate", wide ? gate_kernel<kWide<T>, T> : gate_kernel<1, T>,
         grid_of_elements<T>(s, wide), kThreads, 0, s, x, z, o);
}

}  // namespace

template <class T>
void rmsnorm_fold(CudaQueue& queue, const RmsNormFold<T>& p) {
  rmsnorm_linear_check(p.shape);
  launch(queue, "rmsnorm_fold", fold_kernel<T>,
         grid_of(static_cast<std::int64_t>(p.shape.out) * p.shape.in, kThreads), kThreads, 0, p);
}

template <class T>
std::size_t rmsnorm_linear_forward_workspace(const CudaQueue& queue, const RmsNormLinearShape& s) {
  if (!s.gated() || rmsnorm_linear_forward_fits<T>(queue, s)) return 0;
  return sizeof(T) * static_cast<std::size_t>(s.rows) * s.in;
}

template <class T>
void rmsnorm_linear_forward(CudaQueue& queue, const RmsNormLinearForward<T>& given) {
  RmsNormLinearForward<T> p = given;
  rmsnorm_linear_check(p.shape);
  if constexpr (sizeof(T) == 2)
    if (rmsnorm_linear_forward_few_rows(queue, p) || rmsnorm_linear_forward_fused(queue, p)) return;
  if (p.shape.gated()) {
    FM_CHECK(!rmsnorm_linear_forward_fits<T>(queue, p.shape),
             "[rmsnorm_linear] with a gate, arrays must be aligned to 16 bytes");
    gate(queue, p.shape, p.x, p.z, static_cast<T*>(p.workspace));
    p.x = static_cast<const T*>(p.workspace);
  }
  linear_forward(queue,
                 LinearForward<T, T>{
                     .shape = product_of(p.shape), .x = p.x, .w = p.v, .bias = nullptr, .y = p.y});
  const bool wide = vectors_fit<T>({p.shape.in, p.shape.out}, {p.x, p.y});
  launch(queue, "rmsnorm_linear_scale", wide ? scale_kernel<kWide<T>, T> : scale_kernel<1, T>,
         grid_of(p.shape.rows, kThreads / kScaleLanes), kThreads, 0, p);
}

template <class T>
std::size_t rmsnorm_linear_backward_workspace(const CudaQueue& queue, const RmsNormLinearShape& s) {
  if constexpr (sizeof(T) == 2)
    if (const std::size_t bytes = rmsnorm_linear_backward_fused_workspace<T>(queue, s))
      return bytes;
  return s_bytes(s) + linear_backward_weight_workspace(product_of(s));
}

template <class T>
void rmsnorm_linear_backward_weight(CudaQueue& queue, const RmsNormLinearBackward<T>& p) {
  if constexpr (sizeof(T) == 2) rmsnorm_linear_backward_fused_weight(queue, p);
}

// Apart, dy becomes r dy, and dx has room for o until it is wanted.
template <class T>
void rmsnorm_linear_backward(CudaQueue& queue, const RmsNormLinearBackward<T>& p) {
  rmsnorm_linear_check(p.shape);
  if constexpr (sizeof(T) == 2) {
    if (rmsnorm_linear_backward_fused(queue, p)) return;
    FM_CHECK(!rmsnorm_linear_backward_fused_workspace<T>(queue, p.shape),
             "[rmsnorm_linear] arrays of the backward pass must be aligned to 16 bytes");
  }
  const Apart<T> apart = {p, static_cast<float*>(p.workspace)};
  const bool wide_out = vectors_fit<T>({p.shape.out}, {p.dy, p.y});
  launch(queue, "rmsnorm_scale_backward",
         wide_out ? scale_backward_kernel<kWide<T>, T> : scale_backward_kernel<1, T>,
         grid_of(p.shape.rows, kThreads / kScaleBackwardLanes), kThreads, 0, apart);
  if (p.shape.gated()) gate(queue, p.shape, p.x, p.z, p.dx);
  linear_backward_weight(
      queue,
      LinearBackwardWeight<T>{.shape = product_of(p.shape),
                              .dy = p.dy,
                              .x = p.shape.gated() ? p.dx : p.x,
                              .dw = p.dv,
                              .dbias = nullptr,
                              .workspace = static_cast<char*>(p.workspace) + s_bytes(p.shape)});
  linear_backward_input(queue, LinearBackwardInput<T>{
                                   .shape = product_of(p.shape), .dy = p.dy, .w = p.v, .dx = p.dx});
  const bool wide = vectors_fit<T>({p.shape.in, p.shape.z_stride}, {p.x, p.z, p.dx, p.dz});
  launch(queue, "rmsnorm_linear_finish", wide ? finish_kernel<kWide<T>, T> : finish_kernel<1, T>,
         grid_of_elements<T>(p.shape, wide), kThreads, 0, apart);
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
template std::size_t rmsnorm_linear_forward_workspace<float>(const CudaQueue&,
                                                             const RmsNormLinearShape&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<float>&);
template std::size_t rmsnorm_linear_forward_workspace<f16>(const CudaQueue&,
                                                           const RmsNormLinearShape&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<f16>&);
template std::size_t rmsnorm_linear_forward_workspace<bf16>(const CudaQueue&,
                                                            const RmsNormLinearShape&);
template void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<bf16>&);
template std::size_t rmsnorm_linear_backward_workspace<float>(const CudaQueue&,
                                                              const RmsNormLinearShape&);
template void rmsnorm_linear_backward(CudaQueue&, const RmsNormLinearBackward<float>&);
template void rmsnorm_linear_backward_weight(CudaQueue&, const RmsNormLinearBackward<float>&);
template std::size_t rmsnorm_linear_backward_workspace<f16>(const CudaQueue&,
                                                            const RmsNormLinearShape&);
template void rmsnorm_linear_backward(CudaQueue&, const RmsNormLinearBackward<f16>&);
template void rmsnorm_linear_backward_weight(CudaQueue&, const RmsNormLinearBackward<f16>&);
template std::size_t rmsnorm_linear_backward_workspace<bf16>(const CudaQueue&,
                                                             const RmsNormLinearShape&);
template void rmsnorm_linear_backward(CudaQueue&, const RmsNormLinearBackward<bf16>&);
template void rmsnorm_linear_backward_weight(CudaQueue&, const RmsNormLinearBackward<bf16>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<float>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<f16>&);
template void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<bf16>&);

}  // namespace fm
