// Products of many rows with few weights on Hopper: y = x w^T + bias and dx = dy w, 16-bit
// operands. DRAM binds; what counts is that loads and stores never pause.
//
// A block keeps a slice of the weights in shared memory and walks over the rows, 128 at a time. One
// thread's copies bring the rows, in panels of 64 columns, as far ahead as there is room; each of
// two warpgroups has 64 of the rows and makes 128 outputs of them at a time. A warp's results go
// through shared memory to whole lines of y by the copy engine, without a barrier beyond the warp.
#include <algorithm>
#include <limits>

#include "kernels/base/launch.cuh"
#include "kernels/matmul/matmul_hopper.cuh"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

constexpr int kGroups = 2, kWarps = kGroups * kWarpgroup / kWarp;
constexpr int kWorkers = kGroups * kWarpgroup, kThreads = kWorkers + kWarp;
constexpr int kTileRows = kGroups * 64, kWarpRows = 16;
constexpr unsigned kPanelBytes = kTileRows * kPanelRowBytes;  // of x: 16 KB
[[maybe_unused]] constexpr unsigned kGroupBytes = kPanelBytes / kGroups;
[[maybe_unused]] constexpr unsigned kOverPanel =
    kPanel * kPanelRowBytes;  // of w, where the sum runs over rows
constexpr unsigned kResultPanel = kWarpRows * kPanelRowBytes;

constexpr int kColumns = 128;                                 // of y, a product's
constexpr unsigned kWeightBytes = kColumns * kPanelRowBytes;  // 64 terms of the sums
constexpr unsigned kStageBytes = kPanelBytes + 2 * 8;         // with its barriers
constexpr int kSlots = 2;                                     // a warp's places for results
constexpr unsigned kResultBytes = kColumns / kPanel * kResultPanel;
constexpr unsigned kResultsBytes = kWarps * kSlots * kResultBytes;

constexpr int kMostTerms = 2 * kPanel;  // of a sum
constexpr int kMostWeights = 6;         // panels of w in a block: 96 KB

struct RowsPlan {
  int rows, columns;  // of y
  int panels;         // of a row of x
  int chunks;         // of kColumns, of a row of y
  int slice;          // chunks of a block
  int stages;         // panels of x in shared memory

  __host__ __device__ constexpr int slices() const { return ceil_div(chunks, slice); }
  __host__ __device__ constexpr int weight_panels() const { return slice * panels; }
  constexpr unsigned bytes() const {
    return weight_panels() * (kWeightBytes + 8) + stages * kStageBytes + kResultsBytes;
  }
};

struct RowsMaps {
  CUtensorMap x, w, y;
};

// Shared memory of a block: panels of w [slice][panels], the ring of x, results, barriers.
struct Addresses {
  unsigned base;
  const RowsPlan& plan;
  __device__ unsigned weights(int panel) const { return base + panel * kWeightBytes; }
  __device__ unsigned rows(int stage) const {
    return weights(plan.weight_panels()) + stage * kPanelBytes;
  }
  __device__ unsigned results(int warp, int slot) const {
    return rows(plan.stages) + (warp * kSlots + slot) * kResultBytes;
  }
  __device__ unsigned full(int stage) const { return barrier(stage); }
  __device__ unsigned empty(int stage) const { return barrier(plan.stages + stage); }
  __device__ unsigned weights_full(int panel) const { return barrier(2 * plan.stages + panel); }

 private:
  __device__ unsigned barrier(int i) const { return results(kWarps, 0) + i * 8; }
};

// A block's slice of the outputs and its tiles of rows: neighbours in time share x in the L2 cache.
struct Walk {
  int chunk, chunks, tile, tiles, step;
  __device__ explicit Walk(const RowsPlan& plan) {
    const int slices = plan.slices();
    chunk = blockIdx.x % slices * plan.slice;
    chunks = min(plan.slice, plan.chunks - chunk);
    tile = blockIdx.x / slices;
    tiles = (plan.rows - 1) / kTileRows + 1;
    step = gridDim.x / slices;
  }
};

// The thread that brings weights, once, and rows.
template <Sum kW>
__device__ void bring(const RowsMaps& maps, const RowsPlan& plan, const Addresses& shared) {
  const Walk walk(plan);
  const auto bring_weights = [&](int chunk, int k) {
    const int panel = chunk * plan.panels + k, column = (walk.chunk + chunk) * kColumns;
    const unsigned to = shared.weights(panel), full = shared.weights_full(panel);
    barrier_expect(full, kWeightBytes);
    if constexpr (kW == kAlong) {
      load_tile(to, maps.w, k * kPanel, column, full);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns / kPanel; ++i)
        load_tile(to + i * kOverPanel, maps.w, column + i * kPanel, k * kPanel, full);
    }
  };
  RingStage stage;
  for (int tile = walk.tile; tile < walk.tiles; tile += walk.step) {
    const bool first = tile == walk.tile;
    for (int k = 0; k < plan.panels; ++k, stage.next(plan.stages)) {
      if (first) bring_weights(0, k);
      const unsigned full = shared.full(stage.at);
      barrier_wait(shared.empty(stage.at), stage.phase ^ 1);
      barrier_expect(full, kPanelBytes);
      load_tile(shared.rows(stage.at), maps.x, k * kPanel, tile * kTileRows, full);
    }
    if (first)
      for (int i = plan.panels; i < walk.chunks * plan.panels; ++i)
        bring_weights(i / plan.panels, i % plan.panels);
  }
}

// A warpgroup's work: its 64 rows of every tile.
template <class T, Sum kW>
__device__ void multiply_rows(const RowsMaps& maps, const RowsPlan& plan, const T* bias,
                              const Addresses& shared) {
  constexpr unsigned kNextW = kW == kAlong ? kNextAlong : kNextOver;
  const Walk walk(plan);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const unsigned own_rows = warp / 4 * kGroupBytes;
  RingStage stage;
  int slot = 0;
  for (int tile = walk.tile; tile < walk.tiles; tile += walk.step) {
    for (int chunk = 0; chunk < walk.chunks; ++chunk) {
      const int column = (walk.chunk + chunk) * kColumns;
      // Loaded before the products, or their latency costs 4 of 20 us with 384 outputs.
      unsigned bias_pairs[kColumns / 8] = {};
      if (bias) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
          const int of = column + 8 * j + lane % 4 * 2;
          if (of < plan.columns) bias_pairs[j] = *reinterpret_cast<const unsigned*>(bias + of);
        }
      }
      float sum[kColumns / 2];
      RingStage at = stage;
      for (int k = 0; k < plan.panels; ++k, at.next(plan.stages)) {
        const int panel = chunk * plan.panels + k;
        const unsigned rows = shared.rows(at.at) + own_rows, weights = shared.weights(panel);
        barrier_wait(shared.weights_full(panel), 0);
        barrier_wait(shared.full(at.at), at.phase);
        products_begin();
#pragma unroll
        for (int i = 0; i < kPanel / 16; ++i)
          multiply<T, kAlong, kW>(sum, panel_operand(rows + i * kNextAlong),
                                  panel_operand(weights + i * kNextW, kOverPanel), k > 0 || i > 0);
        products_commit();
      }
      products_wait<0>();
      if (chunk + 1 == walk.chunks) {
        __syncwarp();
        for (int k = 0; k < plan.panels; ++k, stage.next(plan.stages))
          if (lane == 0) barrier_arrive(shared.empty(stage.at));
      }

      const unsigned to = shared.results(warp, slot);
      slot = (slot + 1) % kSlots;
      if (lane == 0) stores_wait_read<kSlots - 1>();
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kColumns / 8; j += 2) {
        unsigned pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 add = widen_pair<T>(bias_pairs[j + i / 2]);
          pairs[i] = narrow_pair<T>(sum[4 * j + 2 * i] + add.x, sum[4 * j + 2 * i + 1] + add.y);
        }
        const int part = j + lane / 16;
        store_matrices(to + part / 8 * kResultPanel + lane % 16 * kPanelRowBytes +
                           ((part % 8 ^ lane % 8) << 4),
                       pairs);
      }
      publish_shared();
      __syncwarp();
      if (lane == 0) {
        const int row = tile * kTileRows + warp * kWarpRows;
#pragma unroll
        for (int i = 0; i < kColumns / kPanel; ++i)
          if (column + i * kPanel < plan.columns)
            store_tile(maps.y, column + i * kPanel, row, to + i * kResultPanel);
        stores_commit();
      }
    }
  }
  if (lane == 0) stores_wait_read<0>();
}

template <class T, Sum kW>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_rows_kernel(const __grid_constant__ RowsMaps maps, const __grid_constant__ RowsPlan plan,
                       Deferred<const T*> deferred) {
  if constexpr (kHopper) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Addresses shared{shared_address(memory), plan};
    if (threadIdx.x == 0) {
      prefetch_map(maps.x);
      prefetch_map(maps.w);
      prefetch_map(maps.y);
      for (int i = 0; i < plan.stages; ++i) {
        barrier_init(shared.full(i), 1);
        barrier_init(shared.empty(i), kWarps);
      }
      for (int i = 0; i < plan.weight_panels(); ++i) barrier_init(shared.weights_full(i), 1);
      barriers_ready();
    }
    __syncthreads();
    const T* const bias = deferred.wait();
    if (threadIdx.x < kWorkers) multiply_rows<T, kW>(maps, plan, bias, shared);
    else if (threadIdx.x == kWorkers) bring<kW>(maps, plan, shared);
  } else __trap();
}

// A build for plain sm_90, or for older devices, has empty kernels here: they need few registers.
bool compiled_for_hopper() {
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    FM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, hopper_rows_kernel<f16, kAlong>));
    return attributes.numRegs > 64;
  }();
  return compiled;
}

// A matrix that the copy engine can take: rows at multiples of 16 bytes.
template <class T>
bool copyable(const T* data, std::int64_t ld) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ld % 8 == 0;
}

CUtensorMap rows_map(const void* data, std::int64_t rows, std::int64_t columns, std::int64_t ld,
                     int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t bytes[] = {static_cast<cuuint64_t>(ld) * 2};
  const cuuint32_t box[] = {kPanel, static_cast<cuuint32_t>(box_rows)};
  return panel_map_of(data, 2, sizes, bytes, box);
}

// The cut for which a block has least to do, with x as seldom from the L2 cache as that allows; no
// stages: a product for cuBLASLt. Measured on an H100: of 50176 rows, from cold caches, 128 to 384
// with bias take 20.5 us (cuBLASLt 26.8), 128 to 128 with bias 13.7 (17.1), 128 to 1024 45 (48.7),
// and dx of 512 from 128 24 (27.4). cuBLASLt is as fast with 128 outputs and no bias, and faster
// with longer sums, and where there is less than a tile a multiprocessor.
template <class T>
RowsPlan plan_of(const CudaQueue& queue, const Product<T, T>& p, bool bias) {
  constexpr int kMostRows = std::numeric_limits<int>::max() - kTileRows;
  if (p.m < std::int64_t{kTileRows} * queue.limits.multiprocessors || p.m > kMostRows ||
      p.n <= (bias ? kPanel : kColumns) || p.k > kMostTerms || p.n % 8 != 0 || p.k % 8 != 0)
    return {};
  const int panels = static_cast<int>(ceil_div(p.k, kPanel));
  const std::int64_t chunks = ceil_div(p.n, kColumns), tiles = ceil_div(p.m, kTileRows);
  RowsPlan best{};
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int slice = 1; slice <= chunks && slice * panels <= kMostWeights; ++slice) {
    RowsPlan plan{
        static_cast<int>(p.m), static_cast<int>(p.n), panels, static_cast<int>(chunks), slice, 0};
    const auto left = static_cast<std::int64_t>(queue.limits.shared_bytes_per_block) - plan.bytes();
    plan.stages = static_cast<int>(left / kStageBytes);
    const int blocks = queue.limits.multiprocessors / plan.slices();
    if (plan.stages < panels || blocks == 0) continue;
    const std::int64_t work = slice * ceil_div(tiles, blocks);
    if (work > least) continue;
    least = work;
    best = plan;
  }
  return best;
}

template <class T, Sum kW>
void launch_rows(CudaQueue& queue, const Product<T, T>& p, const T* bias, const RowsPlan& plan) {
  RowsMaps maps{rows_map(p.a.data, p.m, p.k, p.a.ld, kTileRows),
                {},
                rows_map(p.d, p.m, p.n, p.ldd, kWarpRows)};
  if (kW == kAlong) maps.w = rows_map(p.b.data, p.n, p.k, p.b.ld, kColumns);
  else maps.w = rows_map(p.b.data, p.k, p.n, p.b.ld, kPanel);
  const int tiles = (plan.rows - 1) / kTileRows + 1;
  const int grid = plan.slices() * std::min(tiles, queue.limits.multiprocessors / plan.slices());
  launch(queue, "linear_rows", hopper_rows_kernel<T, kW>, dim3(static_cast<unsigned>(grid)),
         kThreads, plan.bytes(), maps, plan, bias);
}

}  // namespace

template <class T>
bool multiply_many_rows(CudaQueue& queue, const Product<T, T>& p, const T* bias) {
  if (p.groups != 1 || p.accumulate || queue.limits.compute_capability != 90 ||
      !compiled_for_hopper() || !copyable(p.a.data, p.a.ld) || !copyable(p.b.data, p.b.ld) ||
      !copyable<T>(p.d, p.ldd) || reinterpret_cast<std::uintptr_t>(bias) % 4 != 0)
    return false;
  const RowsPlan plan = plan_of(queue, p, bias != nullptr);
  if (plan.stages == 0) return false;
  if (p.b.k_inner) launch_rows<T, kAlong>(queue, p, bias, plan);
  else launch_rows<T, kOver>(queue, p, bias, plan);
  return true;
}

template bool multiply_many_rows(CudaQueue&, const Product<f16, f16>&, const f16*);
template bool multiply_many_rows(CudaQueue&, const Product<bf16, bf16>&, const bf16*);

}  // namespace fm
