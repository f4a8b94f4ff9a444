#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm/rmsnorm_lanes.cuh"

// Eight neighbouring lanes take a (row, group) at a time: lane l holds vector l of each segment,
// and those of the row it takes next are under way while it works. The teams of a block take the
// groups in turn, so a warp reads whole rows, and a thread meets the same weights in every row it
// takes: backward keeps their gradients in registers until the piece is done.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;
constexpr int kTeams = kThreads / kLanes;
constexpr int kMostTurns = 8;  // rows that a team of the forward kernel takes

template <class T>
constexpr int kWide = 16 / sizeof(T);

// A lane's part of a segment as it lies in memory.
template <class T>
using Part = Vec<T, kWide<T>>;

// What a thread needs to know of a segment. Past the last one the width is zero.
struct Segment {
  int begin, width;
  float inverse;  // 1 / width
  bool held;      // the lane holds columns of it

  template <class T>
  __device__ static Segment of(const RmsNormShape& shape, int index) {
    const int width = index < shape.segments ? shape.segment_width[index] : 0;
    const int column = static_cast<int>(threadIdx.x) % kLanes * kWide<T>;
    return {shape.begin[index] + column, width, 1.0f / static_cast<float>(width), column < width};
  }
  // The team's sum; a segment of one vector has it all in lane 0, and no other lane asks.
  template <class T>
  __device__ float sum(float x) const {
    return width <= kWide<T> ? x : warp_sum(x, kLanes);
  }
};

template <class T>
__device__ __forceinline__ void load_part(Part<T>& to, const T* from, bool exists) {
  if (exists) to = *reinterpret_cast<const Part<T>*>(from);
  else to = Part<T>{};
}

// The four-float pieces of a lane's weights; zero where it holds none.
template <int N>
__device__ __forceinline__ void load_weights(float (&to)[N], const float* from, bool held) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float(&four)[4] = *reinterpret_cast<float(*)[4]>(to + i);
    if (held) load_wide(four, from + i);
    else four[0] = four[1] = four[2] = four[3] = 0;
  }
}

// A block takes `turns` rows a team. Every lane takes every turn, as the sums need whole warps.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Deferred<RmsNormForward<T>> deferred, int turns) {
  const RmsNormForward<T>& p = deferred.wait();
  constexpr int N = kWide<T>;
  const RmsNormShape& shape = p.shape;
  const int team = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int group = team % shape.groups, step = kTeams / shape.groups;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * step * turns;
  const int rows = static_cast<int>(min(shape.rows - first, std::int64_t{step} * turns));
  const std::int64_t start = (first * shape.groups + group) * shape.width;
  const int stride = shape.groups * shape.width;
  Segment segments[kRmsNormMaxSegments];
  Part<T> next[kRmsNormMaxSegments];
  float weight[kRmsNormMaxSegments][N];
  int row = team / shape.groups;
#pragma unroll
  for (int s = 0; s < kRmsNormMaxSegments; ++s) {
    segments[s] = Segment::of<T>(shape, s);
    load_part(next[s], p.x + start + row * stride + segments[s].begin,
              segments[s].held && row < rows);
    load_weights(weight[s], p.weight[s] + group * segments[s].width + lane * N, segments[s].held);
  }
  for (int turn = 0; turn < turns; ++turn, row += step) {
#pragma unroll
    for (int s = 0; s < kRmsNormMaxSegments; ++s) {
      const Segment& segment = segments[s];
      const std::int64_t at = start + row * stride + segment.begin;
      float x[N], squares = 0;
      widen_all(x, next[s]);
      load_part(next[s], p.x + at + step * stride, segment.held && row + step < rows);
#pragma unroll
      for (int i = 0; i < N; ++i) squares = fmaf(x[i], x[i], squares);
      const float mean = segment.sum<T>(squares) * segment.inverse;
      const float r = rsqrtf(mean + static_cast<float>(shape.eps));
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] *= r * weight[s][i];
      if (segment.held && row < rows) store_narrow(p.y + at, x);
    }
  }
}

// Where segments lie in a row of the workspace, and so in the block's copy of the weights.
struct WeightColumns {
  int first[kRmsNormMaxSegments], all;
};

// Adds up what the block's teams of each group hold of one segment's weight gradients, and writes
// it to `partial` [groups, n].
template <int N>
__device__ __forceinline__ void combine(float (&sums)[N], int n, int groups, float* partial,
                                        float* shared) {
  constexpr int warps = kThreads / kWarp, teams = kWarp / kLanes;
  // Lanes of one group within the warp, then one row of shared memory a warp.
  const int held_groups = min(groups, teams), lanes = kLanes * held_groups;
#pragma unroll
  for (int i = 0; i < N; ++i)
    for (int mask = kWarp / 2; mask >= lanes; mask /= 2)
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], mask);
  __syncthreads();
  const int columns = groups * n, rows = warps * held_groups / groups;
  const int warp = threadIdx.x / kWarp, group = threadIdx.x / kLanes % groups;
  const int column = static_cast<int>(threadIdx.x) % kLanes * N;
  float* row = shared + warp * held_groups / groups * columns + group * n + column;
  if (threadIdx.x % kWarp < lanes && column < n) {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      store_narrow(row + i, *reinterpret_cast<const float(*)[4]>(sums + i));
  }
  __syncthreads();
  for (int c = threadIdx.x; c < columns; c += kThreads) {
    float sum = shared[c];
    for (int r = 1; r < rows; ++r) sum += shared[r * columns + c];
    partial[c] = sum;
  }
}

// A block a piece of rows. The weights stand in shared memory: the registers hold their gradients.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const __grid_constant__ Deferred<RmsNormBackward<T>> deferred,
                    const __grid_constant__ WeightColumns columns, int rows_per_piece) {
  const RmsNormBackward<T>& p = deferred.wait();
  constexpr int N = kWide<T>;
  extern __shared__ __align__(16) float shared[];
  const RmsNormShape& shape = p.shape;
  const int team = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int group = team % shape.groups, step = kTeams / shape.groups;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * rows_per_piece;
  const int rows = static_cast<int>(min(shape.rows - first, std::int64_t{rows_per_piece}));
  const std::int64_t start = (first * shape.groups + group) * shape.width;
  const int stride = shape.groups * shape.width;
  Segment segments[kRmsNormMaxSegments];
  Part<T> next_x[kRmsNormMaxSegments], next_g[kRmsNormMaxSegments];
  int row = team / shape.groups;
#pragma unroll
  for (int s = 0; s < kRmsNormMaxSegments; ++s) {
    segments[s] = Segment::of<T>(shape, s);
    const std::int64_t at = start + row * stride + segments[s].begin;
    load_part(next_x[s], p.x + at, segments[s].held && row < rows);
    load_part(next_g[s], p.dy + at, segments[s].held && row < rows);
  }
  for (int s = 0; s < shape.segments; ++s)
    for (int c = threadIdx.x; c < shape.groups * shape.segment_width[s]; c += kThreads)
      shared[columns.first[s] + c] = p.weight[s][c];
  __syncthreads();
  float sums[kRmsNormMaxSegments][N] = {};
  for (int begin = 0; begin < rows; begin += step, row += step) {
#pragma unroll
    for (int s = 0; s < kRmsNormMaxSegments; ++s) {
      const Segment& segment = segments[s];
      const std::int64_t at = start + row * stride + segment.begin;
      const bool another = segment.held && row + step < rows;
      float x[N], g[N], weighted[N];
      load_weights(weighted, shared + columns.first[s] + group * segment.width + lane * N,
                   segment.held);
      widen_all(x, next_x[s]);
      widen_all(g, next_g[s]);
      load_part(next_x[s], p.x + at + step * stride, another);
      load_part(next_g[s], p.dy + at + step * stride, another);
      float squares = 0, product = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        weighted[i] *= g[i];
        squares = fmaf(x[i], x[i], squares);
        product = fmaf(weighted[i], x[i], product);
      }
      const float square = segment.sum<T>(squares) * segment.inverse;
      const float r = rsqrtf(square + static_cast<float>(shape.eps));
      const float mean = segment.sum<T>(product) * segment.inverse * r;  // of w dy xh
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float xh = x[i] * r;
        sums[s][i] = fmaf(g[i], xh, sums[s][i]);
        x[i] = r * fmaf(-xh, mean, weighted[i]);
      }
      if (segment.held && row < rows) store_narrow(p.dx + at, x);
    }
  }
  float* partial = static_cast<float*>(p.workspace) + blockIdx.x * std::int64_t{columns.all};
#pragma unroll
  for (int s = 0; s < kRmsNormMaxSegments; ++s)
    combine(sums[s], segments[s].width, shape.groups, partial + columns.first[s], shared);
}

bool aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

// Whether eight lanes hold every segment, and the teams of a block divide evenly among the groups.
template <class T>
bool lanes_fit(const RmsNormShape& shape, const float* const* weight,
               std::initializer_list<const T*> arrays) {
  constexpr int wide = kWide<T>;
  bool fit = shape.width % wide == 0 && shape.groups <= kTeams && kTeams % shape.groups == 0 &&
             std::int64_t{shape.groups} * shape.width < (1 << 20) &&
             std::all_of(arrays.begin(), arrays.end(), aligned);
  for (int s = 0; s < shape.segments; ++s)
    fit = fit && shape.begin[s] % wide == 0 && shape.segment_width[s] % wide == 0 &&
          shape.segment_width[s] <= kLanes * wide && aligned(weight[s]);
  return fit;
}

dim3 grid_of(std::int64_t blocks) {
  FM_CHECK(blocks <= kMaxGrid, "[rmsnorm] too large for one launch: ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace

template <class T>
bool rmsnorm_forward_lanes(CudaQueue& queue, const RmsNormForward<T>& p) {
  const RmsNormShape& shape = p.shape;
  if (!lanes_fit<T>(shape, p.weight, {p.x, p.y})) return false;
  // As many turns as leave two blocks a multiprocessor.
  const int step = kTeams / shape.groups;
  const std::int64_t share = shape.rows / (2 * step * queue.limits.multiprocessors);
  const int turns = static_cast<int>(std::clamp<std::int64_t>(share, 1, kMostTurns));
  launch(queue, "rmsnorm_forward", forward_kernel<T>, grid_of(ceil_div(shape.rows, step * turns)),
         kThreads, 0, p, turns);
  return true;
}

template <class T>
bool rmsnorm_backward_lanes(CudaQueue& queue, const RmsNormBackward<T>& p) {
  const RmsNormShape& shape = p.shape;
  if (!lanes_fit<T>(shape, p.weight, {p.x, p.dy, p.dx})) return false;
  WeightColumns columns{};
  for (int s = 0; s < shape.segments; ++s) {
    columns.first[s] = columns.all;
    columns.all += static_cast<int>(shape.weights(s));
  }
  const int widest = *std::max_element(shape.segment_width, shape.segment_width + shape.segments);
  const int combined = kThreads / kWarp * std::min(shape.groups, kWarp / kLanes) * widest;
  launch(queue, "rmsnorm_backward", backward_kernel<T>, grid_of(rmsnorm_pieces(shape.rows)),
         kThreads, std::max(columns.all, combined) * sizeof(float), p, columns,
         static_cast<int>(rmsnorm_rows_per_piece(shape.rows)));
  return true;
}

template bool rmsnorm_forward_lanes(CudaQueue&, const RmsNormForward<float>&);
template bool rmsnorm_forward_lanes(CudaQueue&, const RmsNormForward<f16>&);
template bool rmsnorm_forward_lanes(CudaQueue&, const RmsNormForward<bf16>&);
template bool rmsnorm_backward_lanes(CudaQueue&, const RmsNormBackward<float>&);
template bool rmsnorm_backward_lanes(CudaQueue&, const RmsNormBackward<f16>&);
template bool rmsnorm_backward_lanes(CudaQueue&, const RmsNormBackward<bf16>&);

}  // namespace fm
