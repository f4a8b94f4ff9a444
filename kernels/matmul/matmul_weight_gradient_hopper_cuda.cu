// The weight gradient of 16-bit operands on Hopper: slices of the rows by wgmma, from rows that the
// copy engine brings, then add_slices. DRAM binds: 51 MB of qkv's rows arrive at 3.0 TB/s of an
// H100's 3.35. What is left is small as the slices are few: 4.3 MB of sums, of any shape, instead
// of 9 to 17, each MB of which costs 0.6 us to write and add.
//
// A block has a tile of 64 x 128 or 64 x 136 and all of an SM's shared memory: one warp's copies
// run up to 8 stages (200 KB) ahead of one warpgroup's products. A pair of blocks has two tiles of
// A and the same columns of B; each brings half of B's rows for both, so that qkv's dy and x come
// from the L2 cache 1.5 times, not 2.3.
//
// The sum runs over rows, so both operands are read transposed by their descriptors. Column sums of
// dy are its tile times ones.
#include "kernels/matmul/add_slices.cuh"
#include "kernels/matmul/matmul_hopper.cuh"
#include "kernels/matmul/matmul_mma.cuh"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

constexpr int kThreads = kWarpgroup + kWarp;
constexpr unsigned kPanelBytes = kHopperDepth * kPanelRowBytes;
constexpr unsigned kOnesBytes = 16 * 16;            // 16 rows of 8 columns
constexpr int kShare = kHopperDepth / kHopperPair;  // rows of B that a block brings

// Shared memory: the stages' panels, one of A and then B's; the ones; barriers.
template <int kIndex>
struct Layout {
  static constexpr int panels_b = (kHopperTiles[kIndex].b + kPanel - 1) / kPanel;
  static constexpr unsigned stage_bytes = (1 + panels_b) * kPanelBytes;
  static constexpr int stages = static_cast<int>((200u << 10) / stage_bytes);
  static constexpr unsigned ones = stages * stage_bytes;
  static constexpr unsigned full = ones + kOnesBytes, empty = full + stages * 8;
  static constexpr unsigned bytes = empty + stages * 8;
};

struct SliceMaps {
  CUtensorMap a, b;
};
struct SliceSums {
  int rows, tiles_a, tiles_b;
  float* parts;     // as AddSlices has them
  float* bias;      // [slices, biases], or null
  int out, biases;  // of a group, of all
};

template <class T, int kIndex>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_slices_kernel(const __grid_constant__ SliceMaps maps, Deferred<SliceSums> deferred) {
  if constexpr (kHopper) {
    constexpr HopperTile kTile = kHopperTiles[kIndex];
    using Shared = Layout<kIndex>;
    constexpr int kStages = Shared::stages;
    constexpr unsigned kStageBytes = Shared::stage_bytes;
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned ring = shared_address(memory), ones = ring + Shared::ones;
    const unsigned full = ring + Shared::full, empty = ring + Shared::empty;

    if (threadIdx.x == 0) {
      prefetch_map(maps.a);
      prefetch_map(maps.b);
      for (int i = 0; i < kStages; ++i) {
        barrier_init(full + i * 8, 1);
        barrier_init(empty + i * 8, kHopperPair);
      }
      barriers_ready();
    }
    if (threadIdx.x < kOnesBytes / 4) {
      reinterpret_cast<unsigned*>(memory + Shared::ones)[threadIdx.x] = kOnes<T>;
      publish_shared();
    }
    __syncthreads();
    meet_cluster();
    const SliceSums& p = deferred.wait();

    // A pair's tiles follow one another along A.
    const int tile_a = blockIdx.x % p.tiles_a, tile_b = blockIdx.x / p.tiles_a % p.tiles_b;
    const int group = blockIdx.x / (p.tiles_a * p.tiles_b);
    const std::int64_t all_steps = ceil_div<std::int64_t>(p.rows, kHopperDepth);
    const int first = static_cast<int>(all_steps * blockIdx.y / gridDim.y);
    const int steps = static_cast<int>(all_steps * (blockIdx.y + 1) / gridDim.y) - first;
    int stage = 0;
    unsigned parity = 0;
    const auto next = [&] {
      if (++stage == kStages) stage = 0, parity ^= 1;
    };

    if (threadIdx.x >= kWarpgroup) {
      if (threadIdx.x > kWarpgroup) return;
      const int share = static_cast<int>(cluster_rank()) * kShare;
      for (int step = 0; step < steps; ++step, next()) {
        const unsigned to = ring + stage * kStageBytes, barrier = full + stage * 8;
        const int row = (first + step) * kHopperDepth;
        barrier_wait(empty + stage * 8, parity ^ 1);
        barrier_expect(barrier, kStageBytes);
        load_box(to, maps.a, tile_a * kHopperA, row, group, barrier);
#pragma unroll
        for (int i = 0; i < Shared::panels_b; ++i)
          load_box_to_all(to + (1 + i) * kPanelBytes + share * kPanelRowBytes, maps.b,
                          tile_b * kTile.b + i * kPanel, row + share, group, barrier,
                          (1 << kHopperPair) - 1);
      }
      return;
    }

    // What a step has read may be overwritten, by either block, if there is something to come.
    const auto leave = [&](int step) {
      if (step < 0 || step + kStages >= steps) return;
      named_sync(1, kWarpgroup);
      if (threadIdx.x < kHopperPair) barrier_arrive_at(empty + step % kStages * 8, threadIdx.x);
    };
    float sum[kTile.b / 2], bias_sum[4];
    for (int step = 0; step < steps; ++step, next()) {
      const unsigned from = ring + stage * kStageBytes;
      barrier_wait(full + stage * 8, parity);
      products_begin();
#pragma unroll
      for (int k = 0; k < kHopperDepth / 16; ++k) {
        const std::uint64_t a = panel_operand(from + k * kNextOver);
        const std::uint64_t b = panel_operand(from + kPanelBytes + k * kNextOver, kPanelBytes);
        multiply<T, kOver, kOver>(sum, a, b, step > 0 || k > 0);
        if constexpr (!kTile.swapped)
          multiply<T, kOver, kOver>(bias_sum, a, narrow_operand(ones), step > 0 || k > 0);
      }
      products_commit();
      products_wait<1>();
      leave(step - 1);
    }
    products_wait<0>();

    const int tile = (group * p.tiles_a + tile_a) * p.tiles_b + tile_b;
    float4* const to = reinterpret_cast<float4*>(p.parts) +
                       (std::int64_t{blockIdx.y} * gridDim.x + tile) * (kHopperA * kTile.b / 4) +
                       threadIdx.x;
#pragma unroll
    for (int f = 0; f < kTile.b / 8; ++f)
      to[f * kWarpgroup] = make_float4(sum[4 * f], sum[4 * f + 1], sum[4 * f + 2], sum[4 * f + 3]);
    if constexpr (!kTile.swapped) {  // every column of these sums is the same
      const int column = tile_a * kHopperA + threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4;
      if (!p.bias || tile_b > 0 || threadIdx.x % 4) return;
      float* const bias = p.bias + std::int64_t{blockIdx.y} * p.biases + group * p.out;
      if (column < p.out) bias[column] = bias_sum[0];
      if (column + 8 < p.out) bias[column + 8] = bias_sum[2];
    }
  } else __trap();
}

// A build for plain sm_90 has empty kernels here: they need few registers.
bool compiled_for_hopper() {
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    FM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, hopper_slices_kernel<f16, 0>));
    return attributes.numRegs > 64;
  }();
  return compiled;
}

template <class T, int kIndex>
void launch_slices(CudaQueue& queue, dim3 grid, const SliceMaps& maps, const SliceSums& p) {
  const char* const name = "linear_weight_slices";
  const auto kernel = hopper_slices_kernel<T, kIndex>;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kHopperPair, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = Layout<kIndex>::bytes;
  config.stream = queue.stream();
  config.attrs = attributes;
  config.numAttrs = can_overlap(queue) ? 2 : 1;
  allow_shared(name, kernel, config.dynamicSmemBytes);
  cuda_check(cudaLaunchKernelEx(&config, kernel, maps, Deferred<SliceSums>(p)), name);
  after_launch(queue, name);
}

constexpr unsigned kMostBytes = std::max(Layout<0>::bytes, Layout<1>::bytes);

bool aligned_to(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

}  // namespace

// One group without a bias's gradient is cuBLASLt's: 1 to 2 us faster than this, of 19 to 48.
template <class T>
bool weight_gradient_hopper(CudaQueue& queue, const LinearBackwardWeight<T>& p,
                            const LinearShape& s) {
  if (!p.dbias && s.groups == 1) return false;
  const HopperPlan plan =
      hopper_plan(s, std::min(queue.limits.multiprocessors, kMostMultiprocessors));
  if (plan.tile < 0 || queue.limits.compute_capability != 90 || !compiled_for_hopper())
    return false;
  const HopperTile& t = kHopperTiles[plan.tile];
  if (queue.limits.shared_bytes_per_block < kMostBytes || !aligned_to(p.dy, 16) ||
      !aligned_to(p.x, 16) || !aligned_to(p.workspace, kLineBytes) ||
      !aligned_to(p.dw, sizeof(float2)) || !aligned_to(p.dbias, sizeof(float4)))
    return false;

  const auto map_of = [&](bool x, int box_rows) {
    const std::int64_t stride = x ? s.x_stride : s.y_stride, group = x ? s.x_group : s.y_group;
    return box_map(x ? p.x : p.dy, x ? s.in : s.out, s.rows, s.groups, stride,
                   s.groups > 1 ? group : stride, box_rows);
  };
  const SliceMaps maps{map_of(t.swapped, kHopperDepth), map_of(!t.swapped, kShare)};
  const auto tiles = static_cast<unsigned>(weight_tiles(s, plan));
  SliceSums sums{.rows = static_cast<int>(s.rows),
                 .tiles_a = plan.tiles_a,
                 .tiles_b = plan.tiles_b,
                 .parts = static_cast<float*>(p.workspace),
                 .bias = nullptr,
                 .out = s.out,
                 .biases = s.groups * s.out};
  if (!t.swapped && p.dbias)
    sums.bias = sums.parts + std::int64_t{plan.slices} * tiles * kHopperA * t.b;
  const dim3 grid(tiles, static_cast<unsigned>(plan.slices));
  if (t.swapped) launch_slices<T, 1>(queue, grid, maps, sums);
  else launch_slices<T, 0>(queue, grid, maps, sums);

  // The threads hold their sums as those of four warps do, each of 16 rows.
  const WeightTile tile{.a = kHopperA,
                        .b = t.b,
                        .warps_a = kHopperA / 16,
                        .warps_b = 1,
                        .depth = kHopperDepth,
                        .stages = 1,
                        .blocks = 1,
                        .cluster = 1,
                        .swapped = t.swapped,
                        .bias = !t.swapped};
  add_slices(queue, {tile, plan.tiles_a, plan.tiles_b, s.groups, s.in, s.out, plan.slices,
                     plan.slices, sums.parts, sums.bias, p.dw, p.dbias});
  if (t.swapped && p.dbias) column_sums(queue, s, p.dy, p.dbias, sums.parts);
  return true;
}

template bool weight_gradient_hopper(CudaQueue&, const LinearBackwardWeight<f16>&,
                                     const LinearShape&);
template bool weight_gradient_hopper(CudaQueue&, const LinearBackwardWeight<bf16>&,
                                     const LinearShape&);

}  // namespace fm
