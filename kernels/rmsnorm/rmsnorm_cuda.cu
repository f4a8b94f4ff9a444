#include <algorithm>
#include <initializer_list>

#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm/rmsnorm_lanes.cuh"
#include "kernels/rmsnorm/rmsnorm_weight_sums.cuh"

// Segments of any width and alignment; those that fit registers are rmsnorm_lanes_cuda.cu's.
// 8 to 32 neighbouring lanes of a warp share a segment of a row: they read it once for the sums,
// and again, now from the L1 cache, to write the result. A block takes the segments one after
// another, so that a row's sectors are fetched once however its segments cut them.
// __grid_constant__: the segments' fields are indexed at run time where they are, not in a copy.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kLeastLanes = 8;
constexpr int kItems = kThreads / kLeastLanes;   // (row, group) pairs of a forward block
constexpr std::size_t kSharedBytes = 32 * 1024;  // of a backward block, where the width allows

template <class T>
constexpr int kWide = 16 / sizeof(T);

// How the lanes of a warp share the segments, and where in a row of the workspace they lie.
struct Plan {
  int lanes[kRmsNormMaxSegments];
  bool wide[kRmsNormMaxSegments];  // accesses of kWide elements, else of one
  std::int64_t column[kRmsNormMaxSegments + 1];
};

template <int N>
__device__ __forceinline__ void load_weights(float (&to)[N], const float* from) {
  constexpr int part = N % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < N; i += part) load_wide(*reinterpret_cast<float(*)[part]>(to + i), from + i);
}

// One segment of the block's kItems (row, group) pairs. Every lane goes through the same
// iterations, as the sums need whole warps; a lane without a pair has no columns.
template <int N, class T>
__device__ __forceinline__ void forward_segment(const RmsNormForward<T>& p, int segment,
                                                int lanes) {
  const RmsNormShape& shape = p.shape;
  const int n = shape.segment_width[segment];
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = kThreads / lanes;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kItems;
  for (int i = slot; i < kItems; i += slots) {
    const std::int64_t item = first + i;
    const int columns = item < shape.rows * shape.groups ? n : 0;
    const std::int64_t at = item * shape.width + shape.begin[segment];
    const T* x = p.x + at;
    T* y = p.y + at;
    const float* weight = p.weight[segment] + item % shape.groups * n;
    float squares = 0;
    for (int c = lane * N; c < columns; c += lanes * N) {
      float v[N];
      load_wide(v, x + c);
#pragma unroll
      for (int j = 0; j < N; ++j) squares = fmaf(v[j], v[j], squares);
    }
    const float r = rsqrtf(warp_sum(squares, lanes) / n + static_cast<float>(shape.eps));
    for (int c = lane * N; c < columns; c += lanes * N) {
      float v[N], w[N];
      load_wide(v, x + c);
      load_weights(w, weight + c);
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] *= r * w[j];
      store_narrow(y + c, v);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Deferred<RmsNormForward<T>> deferred,
                   const __grid_constant__ Plan plan) {
  const RmsNormForward<T>& p = deferred.wait();
  for (int s = 0; s < p.shape.segments; ++s)
    if (plan.wide[s]) forward_segment<kWide<T>>(p, s, plan.lanes[s]);
    else forward_segment<1>(p, s, plan.lanes[s]);
}

// Sums of a thread's columns over its rows: N values a step, in shared memory since the number of
// steps is not known when compiling. Only the thread itself touches them until the block combines.
// Neighbouring threads' values lie side by side, so that no two lanes meet in a bank.
template <int N>
struct ColumnSums {
  static constexpr int part = N % 4 == 0 ? 4 : 1;  // values of one access
  float* shared;

  __device__ float* at(int thread, int step, int i) const {
    return shared + ((step * (N / part) + i / part) * blockDim.x + thread) * part + i % part;
  }
  __device__ void clear(int steps) const {
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < N; ++i) *at(threadIdx.x, step, i) = 0;
  }
  __device__ void add(int step, const float (&values)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += part) {
      float sum[part];
      float* to = at(threadIdx.x, step, i);
      load_wide(sum, to);
#pragma unroll
      for (int j = 0; j < part; ++j) sum[j] += values[i + j];
      store_narrow(to, sum);
    }
  }
};

// One segment of rows [begin, end) of a group: writes dx, and the rows' share of the segment's
// weight gradients to `partial` [n].
template <int N, class T>
__device__ __forceinline__ void backward_segment(const RmsNormBackward<T>& p, int segment,
                                                 int lanes, int group, std::int64_t begin,
                                                 std::int64_t end, float* partial, float* shared) {
  const RmsNormShape& shape = p.shape;
  const int n = shape.segment_width[segment], threads = blockDim.x;
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = threads / lanes;
  const float* weight = p.weight[segment] + static_cast<std::int64_t>(group) * n;
  const ColumnSums<N> sums{shared};
  sums.clear(ceil_div(n, lanes * N));
  for (std::int64_t first = begin; first < end; first += slots) {
    const std::int64_t row = first + slot;
    const int columns = row < end ? n : 0;
    const std::int64_t at = (row * shape.groups + group) * shape.width + shape.begin[segment];
    const T* x = p.x + at;
    const T* dy = p.dy + at;
    T* dx = p.dx + at;
    float squares = 0, product = 0;
    for (int c = lane * N; c < columns; c += lanes * N) {
      float v[N], g[N], w[N];
      load_wide(v, x + c);
      load_wide(g, dy + c);
      load_weights(w, weight + c);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        squares = fmaf(v[j], v[j], squares);
        product = fmaf(w[j] * g[j], v[j], product);
      }
    }
    const float r = rsqrtf(warp_sum(squares, lanes) / n + static_cast<float>(shape.eps));
    const float mean = warp_sum(product, lanes) * r / n;  // of w dy xh
    for (int c = lane * N, step = 0; c < columns; c += lanes * N, ++step) {
      float v[N], g[N], w[N], share[N];
      load_wide(v, x + c);
      load_wide(g, dy + c);
      load_weights(w, weight + c);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float xh = v[j] * r;
        share[j] = g[j] * xh;
        v[j] = r * fmaf(w[j], g[j], -xh * mean);
      }
      store_narrow(dx + c, v);
      sums.add(step, share);
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < n; c += threads) {
    const int step = c / (lanes * N), owner = c % (lanes * N) / N;
    float sum = 0;
    for (int s = 0; s < slots; ++s) sum += *sums.at(s * lanes + owner, step, c % N);
    partial[c] = sum;
  }
  __syncthreads();  // the next segment reuses the shared memory
}

// A block a (piece of rows, group). The workspace is [pieces, weights()].
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Deferred<RmsNormBackward<T>> deferred,
                    const __grid_constant__ Plan plan, std::int64_t rows_per_piece) {
  const RmsNormBackward<T>& p = deferred.wait();
  extern __shared__ __align__(16) float shared[];
  const RmsNormShape& shape = p.shape;
  const std::int64_t piece = blockIdx.x / shape.groups;
  const int group = static_cast<int>(blockIdx.x % shape.groups);
  const std::int64_t begin = piece * rows_per_piece;
  const std::int64_t end = min(begin + rows_per_piece, shape.rows);
  float* partial = static_cast<float*>(p.workspace) + piece * plan.column[shape.segments];
  for (int s = 0; s < shape.segments; ++s) {
    float* own =
        partial + plan.column[s] + static_cast<std::int64_t>(group) * shape.segment_width[s];
    if (plan.wide[s])
      backward_segment<kWide<T>>(p, s, plan.lanes[s], group, begin, end, own, shared);
    else backward_segment<1>(p, s, plan.lanes[s], group, begin, end, own, shared);
  }
}

bool aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

// Vectors where the segment and its rows are whole and aligned ones, and enough to keep the least
// number of lanes busy; then a power of two of lanes, up to a warp.
template <class T>
Plan plan_of(const RmsNormShape& shape, const float* const* weight,
             std::initializer_list<const T*> arrays) {
  Plan plan{};
  constexpr int wide = kWide<T>;
  const bool rows_fit =
      shape.width % wide == 0 && std::all_of(arrays.begin(), arrays.end(), aligned);
  for (int s = 0; s < shape.segments; ++s) {
    const int n = shape.segment_width[s];
    plan.wide[s] = rows_fit && shape.begin[s] % wide == 0 && n % wide == 0 &&
                   n >= kLeastLanes * wide && aligned(weight[s]);
    const int accesses = plan.wide[s] ? n / wide : n;
    plan.lanes[s] = kLeastLanes;
    while (plan.lanes[s] < kWarp && plan.lanes[s] < accesses) plan.lanes[s] *= 2;
    plan.column[s + 1] = plan.column[s] + shape.weights(s);
  }
  return plan;
}

// Shared memory a thread of the backward kernel needs: its columns' sums, of the widest segment.
template <class T>
std::size_t bytes_per_thread(const RmsNormShape& shape, const Plan& plan) {
  std::size_t most = 0;
  for (int s = 0; s < shape.segments; ++s) {
    const int elements = plan.wide[s] ? kWide<T> : 1;
    const int steps = ceil_div(shape.segment_width[s], plan.lanes[s] * elements);
    most = std::max(most, static_cast<std::size_t>(steps) * elements * sizeof(float));
  }
  return most;
}

dim3 grid_of(std::int64_t blocks) {
  FM_CHECK(blocks <= kMaxGrid, "[rmsnorm] too large for one launch: ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace

template <class T>
void rmsnorm_forward(CudaQueue& queue, const RmsNormForward<T>& p) {
  rmsnorm_check(p.shape);
  if (rmsnorm_forward_lanes(queue, p)) return;
  const Plan plan = plan_of<T>(p.shape, p.weight, {p.x, p.y});
  launch(queue, "rmsnorm_forward", forward_kernel<T>,
         grid_of(ceil_div(p.shape.rows * p.shape.groups, kItems)), kThreads, 0, p, plan);
}

template <class T>
void rmsnorm_backward(CudaQueue& queue, const RmsNormBackward<T>& p) {
  rmsnorm_check(p.shape);
  const RmsNormShape& shape = p.shape;
  const std::int64_t pieces = rmsnorm_pieces(shape.rows);
  if (!rmsnorm_backward_lanes(queue, p)) {
    const Plan plan = plan_of<T>(shape, p.weight, {p.x, p.dy, p.dx});
    const std::size_t bytes = bytes_per_thread<T>(shape, plan);
    int threads = kThreads;
    while (threads > kWarp && threads * bytes > kSharedBytes) threads /= 2;
    FM_CHECK(threads * bytes <= queue.limits.shared_bytes_per_block,
             "[rmsnorm] a segment's gradient sums must fit the device's ",
             queue.limits.shared_bytes_per_block, " bytes of shared memory, got ", threads * bytes);
    launch(queue, "rmsnorm_backward", backward_kernel<T>, grid_of(pieces * shape.groups), threads,
           threads * bytes, p, plan, rmsnorm_rows_per_piece(shape.rows));
  }
  sum_weight_gradients(queue, shape, static_cast<const float*>(p.workspace), pieces, p.dweight);
}

template void rmsnorm_forward(CudaQueue&, const RmsNormForward<float>&);
template void rmsnorm_forward(CudaQueue&, const RmsNormForward<f16>&);
template void rmsnorm_forward(CudaQueue&, const RmsNormForward<bf16>&);
template void rmsnorm_backward(CudaQueue&, const RmsNormBackward<float>&);
template void rmsnorm_backward(CudaQueue&, const RmsNormBackward<f16>&);
template void rmsnorm_backward(CudaQueue&, const RmsNormBackward<bf16>&);

}  // namespace fm
