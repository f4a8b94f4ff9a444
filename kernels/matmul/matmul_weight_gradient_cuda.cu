// The weight gradient of 16-bit operands on the tensor cores, in two stages: blocks make tiles of
// dw from slices of the rows, then the slices are added in order.
//
// The slices' sums are 64 to 139 KB a multiprocessor and cost as much as they are large: written,
// read, and written again to memory when the next kernel's rows push them out of the cache, unless
// they are discarded there after their use (swiglu's 17 MB: 4 us of 60). Pairs of blocks add theirs
// through shared memory where that gains (x_proj: 42 to 39 us on an H100).
//
// Rows of dy and x arrive in shared memory as they lie in memory, stage after stage (cp.async); the
// sum runs over rows, so both operands' fragments are transposed reads of them (ldmatrix.trans).
// Column sums of dy are its fragments times ones: a product more, and dy is read once.
#include "kernels/matmul/add_slices.cuh"
#include "kernels/matmul/matmul_mma.cuh"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

template <class T>
struct SliceOperand {
  const T* data;
  std::int64_t stride, group;
  int width;  // columns of a group
};

template <class T>
struct SliceSums {
  SliceOperand<T> a, b;
  std::int64_t rows, slice_rows;
  int tiles_a, tiles_b;
  float* parts;  // [parts, tiles, fragments, threads, 4]: as the threads hold them
  float* bias;   // [slices, groups, out], or null
  int biases;    // groups * out
  int cluster;   // slices that make one part: 1 or the tile's
};

// Elements a copy of B: narrow operands may have rows of 8 bytes.
template <int kColumns>
constexpr int kCopyB = kColumns == 8 ? 4 : 8;

// Elements from row to row in shared memory: an odd number of 16 bytes, so that the eight rows of a
// matrix lie in different banks.
__host__ __device__ constexpr int pitch(int columns) {
  return columns / 8 % 2 ? columns : columns + 8;
}
__host__ __device__ constexpr int stage_elements(const WeightTile& t) {
  return t.depth * (pitch(t.a) + pitch(t.b));
}

template <class T>
constexpr std::size_t shared_bytes(const WeightTile& t, int cluster) {
  const std::size_t stages = t.stages * stage_elements(t) * sizeof(T);
  const std::size_t sums = static_cast<std::size_t>(t.a) * t.b * sizeof(float);
  return cluster > 1 ? std::max(stages, sums) : stages;
}

// A stage of an operand: kDepth rows of kColumns, in copies of kCopy elements; zeros outside.
template <class T, int kColumns, int kDepth, int kCopy, int kThreads>
__device__ __forceinline__ void load_stage(unsigned to, const T* from, std::int64_t stride,
                                           std::int64_t rows, int columns) {
  constexpr int kRowCopies = kColumns / kCopy, kCopies = kDepth * kRowCopies;
#pragma unroll
  for (int i = 0; i < ceil_div(kCopies, kThreads); ++i) {
    const int copy = threadIdx.x + i * kThreads;
    const int row = copy / kRowCopies, column = copy % kRowCopies * kCopy;
    if (kCopies % kThreads == 0 || copy < kCopies)
      copy_async<kCopy * sizeof(T)>(to + (row * pitch(kColumns) + column) * sizeof(T),
                                    from + row * stride + column, row < rows && column < columns);
  }
}

template <class T, int kIndex>
__global__ void __launch_bounds__(threads(kWeightTiles[kIndex]), kWeightTiles[kIndex].blocks)
    slices_kernel(SliceSums<T> p) {
  constexpr WeightTile kTile = kWeightTiles[kIndex];
  constexpr int kThreads = threads(kTile), kDepth = kTile.depth, kStages = kTile.stages;
  constexpr int kA = fragments_a(kTile), kB = fragments_b(kTile);
  constexpr int kPitchA = pitch(kTile.a), kPitchB = pitch(kTile.b);
  constexpr unsigned kStageBytes = stage_elements(kTile) * sizeof(T);
  constexpr unsigned kBytesA = kDepth * kPitchA * sizeof(T);
  constexpr int kBias = kTile.bias ? (kTile.swapped ? kB : kA) : 1;
  static_assert(
      kA * 16 * kTile.warps_a == kTile.a && kB * 8 * kTile.warps_b == kTile.b && kDepth % 16 == 0,
      "a tile is whole fragments");

  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned stages = shared_address(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_a = warp / kTile.warps_b, warp_b = warp % kTile.warps_b;
  const int tile_b = blockIdx.x % p.tiles_b, tile_a = blockIdx.x / p.tiles_b % p.tiles_a;
  const int group = blockIdx.x / (p.tiles_b * p.tiles_a);
  const int first_a = tile_a * kTile.a, first_b = tile_b * kTile.b;
  const std::int64_t first_row = blockIdx.y * p.slice_rows;
  const std::int64_t rows = min(p.slice_rows, p.rows - first_row);
  const T* const a = p.a.data + group * p.a.group + first_row * p.a.stride + first_a;
  const T* const b = p.b.data + group * p.b.group + first_row * p.b.stride + first_b;

  const auto load = [&](int step, int stage) {
    const std::int64_t row = std::int64_t{step} * kDepth;
    const unsigned to = stages + stage * kStageBytes;
    load_stage<T, kTile.a, kDepth, 8, kThreads>(to, a + row * p.a.stride, p.a.stride, rows - row,
                                                p.a.width - first_a);
    load_stage<T, kTile.b, kDepth, kCopyB<kTile.b>, kThreads>(
        to + kBytesA, b + row * p.b.stride, p.b.stride, rows - row, p.b.width - first_b);
  };

  const int steps = static_cast<int>(ceil_div(rows, kDepth));
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) load(stage, stage);
    commit_copies();
  }

  // Where this lane's row of the first matrices lies: those of A follow one another along the
  // columns first, those of B along the rows.
  const unsigned at_a =
      ((lane % 8 + lane / 16 * 8) * kPitchA + warp_a * kA * 16 + lane / 8 % 2 * 8) * sizeof(T);
  const unsigned at_b =
      kBytesA + (lane % 16 * kPitchB + warp_b * kB * 8 + lane / 16 * 8) * sizeof(T);
  const bool bias = kTile.bias && p.bias &&
                    (kTile.swapped ? tile_a == 0 && warp_a == 0 : tile_b == 0 && warp_b == 0);

  float sum[kA][kB][4] = {}, bias_sum[kBias][4] = {};
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();
    // The stage that everyone has just left.
    if (step + kStages - 1 < steps) load(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    commit_copies();

    const unsigned from = stages + stage * kStageBytes;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      unsigned fragment_a[kA][4], fragment_b[kB][2];
#pragma unroll
      for (int i = 0; i < kA; ++i)
        load_transposed(fragment_a[i], from + at_a + (k * kPitchA + i * 16) * sizeof(T));
#pragma unroll
      for (int j = 0; j + 1 < kB; j += 2) {
        unsigned two[4];
        load_transposed(two, from + at_b + (k * kPitchB + j * 8) * sizeof(T));
        fragment_b[j][0] = two[0], fragment_b[j][1] = two[1];
        fragment_b[j + 1][0] = two[2], fragment_b[j + 1][1] = two[3];
      }
      if constexpr (kB % 2)
        load_transposed(fragment_b[kB - 1], from + at_b + (k * kPitchB + (kB - 1) * 8) * sizeof(T));
#pragma unroll
      for (int i = 0; i < kA; ++i)
#pragma unroll
        for (int j = 0; j < kB; ++j)
          multiply_add<T>(sum[i][j], fragment_a[i], fragment_b[j][0], fragment_b[j][1]);
      if constexpr (kTile.bias) {
        if (bias) {
#pragma unroll
          for (int i = 0; i < kBias; ++i)
            if constexpr (kTile.swapped)
              multiply_add<T>(bias_sum[i], {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>},
                              fragment_b[i][0], fragment_b[i][1]);
            else multiply_add<T>(bias_sum[i], fragment_a[i], kOnes<T>, kOnes<T>);
        }
      }
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  allow_next_kernel();
  constexpr int kFragments = kA * kB;
  const std::int64_t part = std::int64_t{blockIdx.y / p.cluster} * gridDim.x + blockIdx.x;
  float4* const to =
      reinterpret_cast<float4*>(p.parts) + part * kFragments * kThreads + threadIdx.x;
  const auto own_sum = [&](int f) {
    const float(&own)[4] = sum[f / kB][f % kB];
    return make_float4(own[0], own[1], own[2], own[3]);
  };
  if (kTile.cluster == 1 || p.cluster == 1) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) to[f * kThreads] = own_sum(f);
  } else {
    const unsigned own = stages + threadIdx.x * sizeof(float4);
    __syncthreads();  // everyone has left the stages
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      *reinterpret_cast<float4*>(shared + (f * kThreads + threadIdx.x) * sizeof(float4)) =
          own_sum(f);
    synchronize_cluster();
    const int rank = blockIdx.y % kTile.cluster;
#pragma unroll
    for (int i = 0; i < ceil_div(kFragments, kTile.cluster); ++i) {
      const int f = i * kTile.cluster + rank;
      if (f >= kFragments) break;
      float4 total = load_from_cluster(own + f * kThreads * sizeof(float4), 0);
#pragma unroll
      for (int other = 1; other < kTile.cluster; ++other)
        total = total + load_from_cluster(own + f * kThreads * sizeof(float4), other);
      to[f * kThreads] = total;
    }
    synchronize_cluster();  // nobody leaves while others read its sums
  }

  if constexpr (kTile.bias) {
    if (!bias) return;
    float* const bias_to = p.bias + std::int64_t{blockIdx.y} * p.biases;
    const int first = group * (kTile.swapped ? p.b.width : p.a.width);
#pragma unroll
    for (int i = 0; i < kBias; ++i)
      if constexpr (kTile.swapped) {  // every row of the sums is the same
        const int column = first_b + i * 8 + lane % 4 * 2;
        if (lane < 4 && column < p.b.width) {
          bias_to[first + column] = bias_sum[i][0];
          bias_to[first + column + 1] = bias_sum[i][1];
        }
      } else {  // every column
        const int row = first_a + (warp_a * kA + i) * 16 + lane / 4;
        if (lane % 4 == 0 && row < p.a.width) bias_to[first + row] = bias_sum[i][0];
        if (lane % 4 == 0 && row + 8 < p.a.width) bias_to[first + row + 8] = bias_sum[i][2];
      }
  }
}

template <class T, int kIndex>
void launch_slices(CudaQueue& queue, const LinearShape& s, const WeightPlan& plan,
                   const SliceSums<T>& p) {
  constexpr WeightTile kTile = kWeightTiles[kIndex];
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(weight_tiles(s, plan)), static_cast<unsigned>(plan.slices.count));
  config.blockDim = threads(kTile);
  config.dynamicSmemBytes = shared_bytes<T>(kTile, plan.cluster);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = cluster.val.clusterDim.z = 1;
  cluster.val.clusterDim.y = static_cast<unsigned>(plan.cluster);
  launch_with(queue, "linear_weight_slices", slices_kernel<T, kIndex>, config, cluster,
              plan.cluster > 1, p);
}

template <class T>
bool aligned_to(const SliceOperand<T>& x, int groups, int elements) {
  return reinterpret_cast<std::uintptr_t>(x.data) % (elements * sizeof(T)) == 0 &&
         x.width % elements == 0 && x.stride % elements == 0 &&
         (groups == 1 || x.group % elements == 0);
}

template <class T>
bool aligned_to(const T* x, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(x) % bytes == 0;
}

// With one tile; false where it does not fit the device, or an address its accesses.
template <class T, int kIndex>
bool weight_gradient(CudaQueue& queue, const LinearBackwardWeight<T>& p, const LinearShape& s,
                     const WeightPlan& plan) {
  constexpr WeightTile kTile = kWeightTiles[kIndex];
  const SliceOperand<T> dy{p.dy, s.y_stride, s.y_group, s.out};
  const SliceOperand<T> x{p.x, s.x_stride, s.x_group, s.in};
  SliceSums<T> slices{.a = kTile.swapped ? x : dy,
                      .b = kTile.swapped ? dy : x,
                      .rows = s.rows,
                      .slice_rows = plan.slices.rows,
                      .tiles_a = plan.tiles_a,
                      .tiles_b = plan.tiles_b,
                      .parts = static_cast<float*>(p.workspace),
                      .bias = nullptr,
                      .biases = s.groups * s.out,
                      .cluster = plan.cluster};
  if (shared_bytes<T>(kTile, plan.cluster) > queue.limits.shared_bytes_per_block ||
      !aligned_to(slices.a, s.groups, 8) || !aligned_to(slices.b, s.groups, kCopyB<kTile.b>) ||
      !aligned_to(slices.parts, kLineBytes) || !aligned_to(p.dw, sizeof(float2)) ||
      !aligned_to(p.dbias, sizeof(float4)))
    return false;
  if (kTile.bias && p.dbias)
    slices.bias =
        slices.parts + plan.slices.count / plan.cluster * weight_tiles(s, plan) * kTile.a * kTile.b;
  launch_slices<T, kIndex>(queue, s, plan, slices);
  add_slices(queue,
             {kTile, plan.tiles_a, plan.tiles_b, s.groups, s.in, s.out,
              static_cast<int>(plan.slices.count / plan.cluster),
              static_cast<int>(plan.slices.count), slices.parts, slices.bias, p.dw, p.dbias});
  if (!kTile.bias && p.dbias)
    column_sums(queue, s, p.dy, p.dbias, static_cast<float*>(p.workspace));
  return true;
}

// Where these kernels are the faster ones (measured on an H100). cuBLASLt reads plain operands at
// the same rate and meets on fewer sums, but a bias costs it another reading of dy, and its kernels
// for groups and for a few columns take 2 to 4 times as long.
bool pays(const LinearShape& s, bool bias) {
  constexpr std::int64_t kManyRows = 4096;
  if (s.rows <= kFewRows) return bias;
  if (s.rows < kManyRows) return false;
  return s.groups > 1 || std::min(s.in, s.out) <= 8 || (bias && s.out >= s.in);
}

}  // namespace

template <class T>
bool weight_gradient(CudaQueue& queue, const LinearBackwardWeight<T>& p, const LinearShape& s) {
  if (weight_gradient_hopper(queue, p, s)) return true;
  if (!pays(s, p.dbias != nullptr)) return false;
  // A cluster's blocks hold their sums in shared memory: 139 KB at the widest.
  constexpr std::size_t kClusterShared = 160 << 10;
  const bool clusters = queue.limits.compute_capability >= 90 &&
                        queue.limits.shared_bytes_per_block >= kClusterShared;
  const WeightPlan plan =
      weight_plan(s, std::min(queue.limits.multiprocessors, kMostMultiprocessors), clusters);
  if (plan.tile < 0) return false;
  return [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    bool done = false;
    ((plan.tile == kIndex && (done = weight_gradient<T, kIndex>(queue, p, s, plan))) || ...);
    return done;
  }
  (std::make_integer_sequence<int, std::size(kWeightTiles)>());
}

template bool weight_gradient(CudaQueue&, const LinearBackwardWeight<f16>&, const LinearShape&);
template bool weight_gradient(CudaQueue&, const LinearBackwardWeight<bf16>&, const LinearShape&);

}  // namespace fm
