#include <algorithm>

#include "kernels/base/approx.cuh"
#include "kernels/base/hopper.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/swiglu_mlp/swiglu_mlp_backward.h"

// A block has 64 hidden units, whose weights (48 KB) stay in shared memory, and a slice of the
// rows, 64 at a time. Two of its warpgroups make the transposed gradients of a and b and the units
// of alternate tiles; the third multiplies them by x and dy: dw1, dw2 and dw3^T, 64 x 128 each,
// stay in its registers (192 a thread). The transposed form has one unit's sums in one thread's
// row: two biases a thread, and the gradients of the biases are sums in registers. What the slices
// leave (12.6 MB) is added in order by a second kernel.
namespace fm {
namespace {

constexpr int kRows = kMlpRows, kMakers = kMlpMakers;
constexpr int kThreads = (kMakers + 1) * kWarpgroup;
constexpr int kMakeRegisters = 136, kSumRegisters = 232;
constexpr int kSlots = 4;  // of rows
constexpr unsigned kRowPanel = kRows * kPanelRowBytes;
constexpr unsigned kRowTile = kMlpWidth / kPanel * kRowPanel;  // of x or dy
constexpr unsigned kUnitPanel = kMlpUnits * kPanelRowBytes;
constexpr unsigned kUnitTile = kMlpWidth / kPanel * kUnitPanel;  // of a's or b's weights
constexpr unsigned kW3 = kMlpWidth * kPanelRowBytes;
constexpr unsigned kMade = kMlpUnits * kPanelRowBytes;  // da^T, db^T or h^T of a tile

// Offsets in shared memory.
constexpr unsigned kRowsAt = 2 * kUnitTile + kW3;  // after the weights
constexpr unsigned kMadeAt = kRowsAt + kSlots * 2 * kRowTile;
constexpr unsigned kBarriersAt = kMadeAt + kMakers * 3 * kMade;
constexpr unsigned kBytes = kBarriersAt + (kSlots + 1) * 8;

constexpr int kSums = 3 * kMlpUnits * kMlpWidth;  // of a block
constexpr int kFragments = kSums / 4 / kWarpgroup;

template <class T>
struct SumArgs {
  CUtensorMap x, dy, w12, w3;
  const T* b12;
  std::int64_t rows;
  int hidden;
  float* parts;   // [slice][unit block][fragment][thread of 128][4]
  float* biases;  // [slice][maker][gradients of b12, then of b3]
};

// Tiles of 64 rows that a slice has.
struct Tiles {
  std::int64_t first;
  int count;
  __device__ Tiles(std::int64_t rows, int slice, int slices) {
    const std::int64_t tiles = ceil_div(rows, kRows);
    first = tiles * slice / slices;
    count = static_cast<int>(tiles * (slice + 1) / slices - first);
  }
};

// A block's shared addresses, and its barriers by number: what a maker makes is there, or has been
// read (a pair of warpgroups meets there); those of one warpgroup.
template <class T>
struct Shared {
  unsigned base;
  __device__ unsigned rows(int tile) const { return base + kRowsAt + tile % kSlots * 2 * kRowTile; }
  __device__ unsigned made(int maker) const { return base + kMadeAt + maker * 3 * kMade; }
  __device__ unsigned rows_full(int tile) const { return base + kBarriersAt + tile % kSlots * 8; }
  __device__ unsigned weights_full() const { return base + kBarriersAt + kSlots * 8; }

  static constexpr int kPair = 2 * kWarpgroup;
  __device__ int made_full(int maker) const { return 1 + maker; }
  __device__ int made_empty(int maker) const { return 1 + kMakers + maker; }
  __device__ int own(int role) const { return 1 + 2 * kMakers + role; }
};

template <class T>
__device__ void bring_rows(const SumArgs<T>& p, const Shared<T>& shared, std::int64_t first,
                           int tile) {
  const unsigned to = shared.rows(tile), full = shared.rows_full(tile);
  const int row = static_cast<int>((first + tile) * kRows);
  barrier_expect(full, 2 * kRowTile);
  for (int panel = 0; panel < 2; ++panel) {
    load_tile(to + panel * kRowPanel, p.x, panel * kPanel, row, full);
    load_tile(to + kRowTile + panel * kRowPanel, p.dy, panel * kPanel, row, full);
  }
}

// da^T, db^T and h^T of every second tile, and the sums of da and db and of dy's columns.
template <class T>
__device__ void make(const SumArgs<T>& p, const Shared<T>& shared, int maker) {
  const Tiles tiles(p.rows, blockIdx.y, gridDim.y);
  const int thread = threadIdx.x % kWarpgroup, warp = thread / kWarp, lane = thread % kWarp;
  const unsigned w1 = shared.base, w2 = w1 + kUnitTile, w3 = w2 + kUnitTile;
  const unsigned made = shared.made(maker);
  const int unit = 16 * warp + lane / 4, first_unit = blockIdx.x * kMlpUnits;
  float bias_a[2], bias_b[2], sum_a[2] = {}, sum_b[2] = {};
  float2 sum_dy = make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    bias_a[i] = widen(p.b12[first_unit + unit + 8 * i]);
    bias_b[i] = widen(p.b12[p.hidden + first_unit + unit + 8 * i]);
  }
  const unsigned to = made + (16 * warp + lane % 16) * kPanelRowBytes;
  barrier_wait(shared.weights_full(), 0);
  for (int tile = maker; tile < tiles.count; tile += kMakers) {
    const unsigned x = shared.rows(tile), dy = x + kRowTile;
    barrier_wait(shared.rows_full(tile), tile / kSlots & 1);
    float a[32], b[32], dh[32];
    products_begin();
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const unsigned along = k % 4 * kNextAlong, panel = k / 4;
      multiply<T, kAlong, kAlong>(a, panel_operand(w1 + panel * kUnitPanel + along),
                                  panel_operand(x + panel * kRowPanel + along), k > 0);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const unsigned along = k % 4 * kNextAlong, panel = k / 4;
      multiply<T, kAlong, kAlong>(b, panel_operand(w2 + panel * kUnitPanel + along),
                                  panel_operand(x + panel * kRowPanel + along), k > 0);
    }
    products_commit();
#pragma unroll
    for (int k = 0; k < 8; ++k)
      multiply<T, kOver, kAlong>(dh, panel_operand(w3 + k * kNextOver),
                                 panel_operand(dy + k / 4 * kRowPanel + k % 4 * kNextAlong), k > 0);
    products_commit();
    if (blockIdx.x == 0) {  // columns 2 (thread % 64), + 1, of every second row
      const int chunk = thread % 32 / 4;
#pragma unroll 8
      for (int row = thread / 64; row < kRows; row += 2) {
        unsigned pair;
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(pair)
                     : "r"(dy + thread % 64 / 32 * kRowPanel + row * kPanelRowBytes +
                           ((chunk ^ row % 8) << 4) + thread % 4 * 4)
                     : "memory");
        const float2 two = widen_pair<T>(pair);
        sum_dy.x += two.x;
        sum_dy.y += two.y;
      }
    }
    products_wait<1>();
    if (tile >= kMakers) named_sync(shared.made_empty(maker), shared.kPair);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {  // columns of 8 rows of x
      unsigned h[4];
      float units[2];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = 4 * j + i, half = i / 2 % 2;
        const float y = a[at] + bias_a[half], z = b[at] + bias_b[half];
        const float s = sigmoid_approx(y), gate = y * s;
        a[at] = z * fmaf(gate, 1.0f - s, s);
        b[at] = gate;
        units[i % 2] = gate * z;
        if (i % 2) h[i / 2] = narrow_pair<T>(units[0], units[1]);
      }
      store_matrices(to + ((j + lane / 16 ^ lane % 8) << 4) + 2 * kMade, h);
    }
    products_wait<0>();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      unsigned da[4], db[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * j + 2 * i, half = i % 2;
        const float da0 = dh[at] * a[at], da1 = dh[at + 1] * a[at + 1];
        const float db0 = dh[at] * b[at], db1 = dh[at + 1] * b[at + 1];
        sum_a[half] += da0 + da1;
        sum_b[half] += db0 + db1;
        da[i] = narrow_pair<T>(da0, da1);
        db[i] = narrow_pair<T>(db0, db1);
      }
      const unsigned at = to + ((j + lane / 16 ^ lane % 8) << 4);
      store_matrices(at, da);
      store_matrices(at + kMade, db);
    }
    publish_shared();
    named_arrive(shared.made_full(maker), shared.kPair);
  }

  const int columns = 2 * p.hidden + kMlpWidth;
  float* const biases =
      p.biases + static_cast<std::int64_t>(blockIdx.y * kMakers + maker) * columns;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      sum_a[i] += __shfl_xor_sync(0xffffffffu, sum_a[i], mask);
      sum_b[i] += __shfl_xor_sync(0xffffffffu, sum_b[i], mask);
    }
    if (lane % 4 == 0) {
      biases[first_unit + unit + 8 * i] = sum_a[i];
      biases[p.hidden + first_unit + unit + 8 * i] = sum_b[i];
    }
  }
  if (blockIdx.x > 0) return;
  // The two threads of a pair of columns meet in this maker's share of shared memory, which the
  // third warpgroup has read when it lets the maker on.
  if (maker < tiles.count) named_sync(shared.made_empty(maker), shared.kPair);
  const auto other = reinterpret_cast<float2*>(__cvta_shared_to_generic(made));
  if (thread >= 64) other[thread - 64] = sum_dy;
  named_sync(shared.own(maker), kWarpgroup);
  if (thread < 64)
    reinterpret_cast<float2*>(biases + 2 * p.hidden)[thread] =
        make_float2(sum_dy.x + other[thread].x, sum_dy.y + other[thread].y);
}

// dw1, dw2 and dw3^T of all tiles, and the rows' way to shared memory.
template <class T>
__device__ void sum_up(const SumArgs<T>& p, const Shared<T>& shared) {
  const Tiles tiles(p.rows, blockIdx.y, gridDim.y);
  const int thread = threadIdx.x % kWarpgroup;
  if (thread == 0) {
    const int unit = blockIdx.x * kMlpUnits;
    const unsigned weights = shared.base, full = shared.weights_full();
    barrier_expect(full, 2 * kUnitTile + kW3);
    for (int half = 0; half < 2; ++half)
      for (int panel = 0; panel < 2; ++panel)
        load_tile(weights + half * kUnitTile + panel * kUnitPanel, p.w12, panel * kPanel,
                  half * p.hidden + unit, full);
    load_tile(weights + 2 * kUnitTile, p.w3, unit, 0, full);
    for (int tile = 0; tile < min(kSlots, tiles.count); ++tile)
      bring_rows(p, shared, tiles.first, tile);
  }
  // What a tile was multiplied from may be overwritten. Makers wait for this at their next tile,
  // those of unit block 0 once more at the end.
  const auto leave = [&](int tile) {
    const int maker = tile % kMakers;
    if (tile + kMakers < tiles.count || blockIdx.x == 0)
      named_arrive(shared.made_empty(maker), shared.kPair);
    named_sync(shared.own(kMakers), kWarpgroup);
    if (thread == 0 && tile + kSlots < tiles.count)
      bring_rows(p, shared, tiles.first, tile + kSlots);
  };
  float dw1[64], dw2[64], dw3[64];
  for (int tile = 0; tile < tiles.count; ++tile) {
    const int maker = tile % kMakers;
    const unsigned x = shared.rows(tile), dy = x + kRowTile;
    const unsigned made = shared.made(maker);
    named_sync(shared.made_full(maker), shared.kPair);
    products_begin();
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      const std::uint64_t x_rows = panel_operand(x + k * kNextOver, kRowPanel);
      const std::uint64_t dy_rows = panel_operand(dy + k * kNextOver, kRowPanel);
      multiply<T, kAlong, kOver>(dw1, panel_operand(made + k * kNextAlong), x_rows,
                                 tile > 0 || k > 0);
      multiply<T, kAlong, kOver>(dw2, panel_operand(made + kMade + k * kNextAlong), x_rows,
                                 tile > 0 || k > 0);
      multiply<T, kAlong, kOver>(dw3, panel_operand(made + 2 * kMade + k * kNextAlong), dy_rows,
                                 tile > 0 || k > 0);
    }
    products_commit();
    products_wait<1>();
    if (tile > 0) leave(tile - 1);
  }
  products_wait<0>();
  leave(tiles.count - 1);
  float4* const to = reinterpret_cast<float4*>(p.parts) +
                     (std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * (kSums / 4) + thread;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const auto four = [&](const float(&sums)[64]) {
      return make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    };
    to[i * kWarpgroup] = four(dw1);
    to[(16 + i) * kWarpgroup] = four(dw2);
    to[(32 + i) * kWarpgroup] = four(dw3);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    swiglu_mlp_weights_kernel(const __grid_constant__ Deferred<SumArgs<T>> deferred) {
  if constexpr (kHopper) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Shared<T> shared{shared_address(memory)};
    if (threadIdx.x == 0) {
      for (int i = 0; i <= kSlots; ++i) barrier_init(shared.base + kBarriersAt + i * 8, 1);
      barriers_ready();
    }
    __syncthreads();
    const SumArgs<T>& p = deferred.wait();
    const int role = threadIdx.x / kWarpgroup;
    if (role < kMakers) {
      give_registers<kMakeRegisters>();
      make(p, shared, role);
    } else {
      take_registers<kSumRegisters>();
      sum_up(p, shared);
    }
  } else __trap();
}

template <class T>
struct AddArgs {
  const float *parts, *biases;
  float *dw12, *dw3, *db12, *db3;
  int hidden, slices;
};

constexpr int kAddThreads = 128;

// A block adds one fragment of the weights' sums, or 128 columns of the biases'.
template <class T>
__global__ void __launch_bounds__(kAddThreads)
    swiglu_mlp_add_kernel(Deferred<AddArgs<T>> deferred) {
  const AddArgs<T>& p = deferred.wait();
  const int unit_blocks = p.hidden / kMlpUnits, weight_blocks = unit_blocks * kFragments;
  if (static_cast<int>(blockIdx.x) >= weight_blocks) {
    const int columns = 2 * p.hidden + kMlpWidth;
    const int column = (blockIdx.x - weight_blocks) * kAddThreads + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
#pragma unroll 16
    for (int i = 0; i < kMakers * p.slices; ++i)
      sum += p.biases[std::int64_t{i} * columns + column];
    if (column < 2 * p.hidden) p.db12[column] = sum;
    else p.db3[column - 2 * p.hidden] = sum;
    return;
  }
  const float4* const from = reinterpret_cast<const float4*>(p.parts) +
                             std::int64_t{blockIdx.x} * kAddThreads + threadIdx.x;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 16
  for (int i = 0; i < p.slices; ++i) {
    const float4 part = from[std::int64_t{i} * weight_blocks * kAddThreads];
    sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
  }
  const int fragment = blockIdx.x % kFragments, which = fragment / 16, lane = threadIdx.x % kWarp;
  const std::int64_t unit =
      blockIdx.x / kFragments * kMlpUnits + threadIdx.x / kWarp * 16 + lane / 4;
  const int column = fragment % 16 * 8 + lane % 4 * 2;
  if (which < 2) {
    float* const to = p.dw12 + (which * p.hidden + unit) * kMlpWidth + column;
    *reinterpret_cast<float2*>(to) = make_float2(sum.x, sum.y);
    *reinterpret_cast<float2*>(to + 8 * kMlpWidth) = make_float2(sum.z, sum.w);
  } else {
    float* const to = p.dw3 + std::int64_t{column} * p.hidden + unit;
    to[0] = sum.x, to[p.hidden] = sum.y, to[8] = sum.z, to[p.hidden + 8] = sum.w;
  }
}

}  // namespace

template <class T>
void swiglu_mlp_backward_weights(CudaQueue& queue, const SwigluMlpBackward<T>& p) {
  const SwigluMlpShape& s = p.shape;
  const int blocks = s.hidden / kMlpUnits;
  const int slices = swiglu_mlp_slices(s, queue.limits.multiprocessors);
  float* const parts = static_cast<float*>(p.workspace);
  float* const biases = parts + slices * swiglu_mlp_weight_sums(s);
  launch(queue, "swiglu_mlp_backward_weights", swiglu_mlp_weights_kernel<T>, dim3(blocks, slices),
         kThreads, kBytes,
         SumArgs<T>{.x = panel_map(p.x, s.rows, s.width, kRows),
                    .dy = panel_map(p.dy, s.rows, s.width, kRows),
                    .w12 = panel_map(p.w12, 2 * s.hidden, s.width, kMlpUnits),
                    .w3 = panel_map(p.w3, s.width, s.hidden, kMlpWidth),
                    .b12 = p.b12,
                    .rows = s.rows,
                    .hidden = s.hidden,
                    .parts = parts,
                    .biases = biases});
  const int bias_blocks = ceil_div(2 * s.hidden + kMlpWidth, kAddThreads);
  launch(queue, "swiglu_mlp_add", swiglu_mlp_add_kernel<T>, dim3(blocks * kFragments + bias_blocks),
         kAddThreads, 0, AddArgs<T>{parts, biases, p.dw12, p.dw3, p.db12, p.db3, s.hidden, slices});
}

template void swiglu_mlp_backward_weights(CudaQueue&, const SwigluMlpBackward<f16>&);
template void swiglu_mlp_backward_weights(CudaQueue&, const SwigluMlpBackward<bf16>&);

}  // namespace fm
