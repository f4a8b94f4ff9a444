#include <algorithm>
#include <initializer_list>

#include "kernels/base/approx.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/matmul/add_slices.cuh"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

// dx, dz and slices of dV in one pass over dy, y, x and z. A block keeps 128 columns of V and as
// many of its dV, and walks tiles of 64 rows:
//   s from dy and y, eight threads a row;
//   do = r (dy V) - s o  from the sums in registers, with x and z that only this lane reads;
//   dV += dy^T (r o)     with r o in shared memory, as other lanes' rows are wanted.
// At the paper's shape that moves 231 MB (78 us at the rate of a copy on an H100, which takes it
// 97) for 13 GFLOP; five kernels that make o first moved 372 MB in 143 us. Warps wait for those
// they share rows or columns with, and once a tile for all.
//
// V lies in shared memory with its columns reordered, so that a lane's sums of a row are 8
// neighbours, 16 bytes of x, z, dx and dz. Tiles are rows of 16-byte chunks; chunk c of row i lies
// at c ^ swizzle(i): eight rows of a column of chunks are in eight different banks, and so are four
// chunks of two neighbouring rows.

namespace fm {
namespace {

constexpr int kThreads = 512, kBlocks = 1;  // of a multiprocessor
constexpr int kRows = 64, kColumns = 128, kOut = 128;
constexpr int kStages = 2;  // of x and z
constexpr int kChunk = 8;   // elements of 16 bytes
constexpr int kRowChunks = kColumns / kChunk;
static_assert(kOut == kColumns, "all tiles have rows of as many chunks");
// Warp w: of do, rows 16 (w / 4), columns 32 (w % 4); of dV, rows 32 (w / 4) and the same columns.
constexpr int kWarpsAcross = 4, kWarpColumns = kColumns / kWarpsAcross;
constexpr int kWarpsDown = kThreads / kWarp / kWarpsAcross;
constexpr int kWarpRows = kRows / kWarpsDown, kHalves = kWarpRows / 16;
constexpr int kSlots = kHalves * 2;  // rows of a lane
constexpr WeightTile kTile = {kOut, kColumns, kWarpsDown, kWarpsAcross, 0,
                              0,    kBlocks,  1,          false,        false};
constexpr int kRowThreads = kThreads / kRows, kRowPieces = kRowChunks / kRowThreads;
static_assert(kWarp / kRowThreads * kWarpsAcross == kWarpRows,
              "the warps of some rows of do make their m");
constexpr int kFragmentsA = fragments_a(kTile), kFragmentsB = fragments_b(kTile);

template <class T>
struct BackwardArgs {
  RmsNormLinearBackward<T> p;
  float* parts;  // as add_slices wants them
};

template <class T, bool kGated>
struct Shared {
  T v[kOut * kColumns];
  T dy[2][kRows * kOut];
  T o[kRows * kColumns];                                      // r o
  uint4 y[kRowPieces][kThreads];                              // a thread's own
  uint4 operands[kStages][kSlots][kGated ? 2 : 1][kThreads];  // x and z: a lane's own
  float r[2][kRows], m[kRows];                                // m = s / r^2
};

__device__ __forceinline__ int swizzle(int row) {
  return (row & 1) << 2 | (row & 6) >> 1;
}
template <class T>
__device__ __forceinline__ T* chunk(T* tile, int row, int c) {
  return tile + (row * kRowChunks + (c ^ swizzle(row))) * kChunk;
}

// V's columns [0, columns) of this block. A group of 32 columns, as chunks q of words w, is stored
// as chunks w of words q: the B fragment of column n of part w is then column 8 (n / 2) + 2 w + n %
// 2.
template <class T>
__device__ __forceinline__ void load_v(T* to, const T* from, int in, int out, int columns) {
  for (int i = threadIdx.x; i < kOut * kRowChunks; i += kThreads) {
    const int row = i / kRowChunks, c = i % kRowChunks;
    uint4 words = {};
    if (row < out && c * kChunk < columns)
      words =
          *reinterpret_cast<const uint4*>(from + static_cast<std::int64_t>(row) * in + c * kChunk);
    const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int w = 0; w < 4; ++w)
      reinterpret_cast<unsigned*>(chunk(to, row, c / 4 * 4 + w))[c % 4] = word[w];
  }
}

// Of 8 elements, from the sums of dy V: what dx and dz become, and r o. With m = s / r^2,
//   do = r q,  q = dy V - m (r o),   dx = q (r silu),   dz = q (r x silu') and
//   r x silu' = r o + gate (r x - r o).
template <bool kGated, class T>
__device__ __forceinline__ void gradients(const float (&product)[8], float r, float m,
                                          const uint4& x, const uint4& z, uint4& o, uint4& dx,
                                          uint4& dz) {
  const unsigned x_words[4] = {x.x, x.y, x.z, x.w}, z_words[4] = {z.x, z.y, z.z, z.w};
  unsigned o_words[4], dx_words[4], dz_words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 xs = widen_pair<T>(x_words[w]), zs = widen_pair<T>(z_words[w]);
    float os[2], dxs[2], dzs[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float rx = r * (e ? xs.y : xs.x), z_e = e ? zs.y : zs.x;
      const float gate = sigmoid_approx(z_e), silu = kGated ? z_e * gate : 1.0f;
      const float ro = rx * silu, d = fmaf(-m, ro, product[2 * w + e]);
      os[e] = ro;
      dxs[e] = d * (r * silu);
      dzs[e] = d * fmaf(gate, rx - ro, ro);
    }
    o_words[w] = narrow_pair<T>(os[0], os[1]);
    dx_words[w] = narrow_pair<T>(dxs[0], dxs[1]);
    dz_words[w] = narrow_pair<T>(dzs[0], dzs[1]);
  }
  o = {o_words[0], o_words[1], o_words[2], o_words[3]};
  dx = {dx_words[0], dx_words[1], dx_words[2], dx_words[3]};
  dz = {dz_words[0], dz_words[1], dz_words[2], dz_words[3]};
}

// Threads of some warps wait for each other.
__device__ __forceinline__ void barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T, bool kGated>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_kernel(Deferred<BackwardArgs<T>> deferred) {
  const BackwardArgs<T>& args = deferred.wait();
  const RmsNormLinearBackward<T>& p = args.p;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<T, kGated>*>(memory);
  const int in = p.shape.in, out = p.shape.out;
  const int column0 = static_cast<int>(blockIdx.x) * kColumns;
  const int row_tiles = static_cast<int>(ceil_div(p.shape.rows, kRows));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int g = lane / 4, q = lane % 4;
  const int first_row = warp / kWarpsAcross * kWarpRows;
  const int first_column = warp % kWarpsAcross * kWarpColumns;
  const int own_column = column0 + first_column + q * kChunk;
  const bool own_exists = own_column < in;

  // 64 rows of dy and of y, with r.
  const auto fetch_rows = [&](int tile, int buffer) {
    const std::int64_t row0 = static_cast<std::int64_t>(tile) * kRows;
    const int row = threadIdx.x / kRowThreads;
#pragma unroll
    for (int i = 0; i < kRowPieces; ++i) {
      const int c = threadIdx.x % kRowThreads + i * kRowThreads;
      const bool exists = c * kChunk < out && row0 + row < p.shape.rows;
      const std::int64_t at = (row0 + row) * out + c * kChunk;
      copy_async(chunk(shared.dy[buffer], row, c), p.dy + at, exists);
      copy_async(&shared.y[i][threadIdx.x], p.y + at, exists);
    }
    if (threadIdx.x < kRows)
      copy_async_4(&shared.r[buffer][threadIdx.x], p.r + min(row0 + threadIdx.x, p.shape.rows - 1));
  };
  const auto find_m = [&](int buffer) {
    const int row = threadIdx.x / kRowThreads;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kRowPieces; ++i) {
      float dy[kChunk], y[kChunk];
      load_wide(dy, chunk(shared.dy[buffer], row, threadIdx.x % kRowThreads + i * kRowThreads));
      load_wide(y, reinterpret_cast<const T*>(&shared.y[i][threadIdx.x]));
#pragma unroll
      for (int e = 0; e < kChunk; ++e) dot = fmaf(dy[e], y[e], dot);
    }
    dot = warp_sum(dot, kRowThreads);
    if (threadIdx.x % kRowThreads == 0) shared.m[row] = dot / static_cast<float>(in);
  };
  const auto row_of = [&](int tile, int slot) {
    return static_cast<std::int64_t>(tile) * kRows + first_row + slot * 8 + g;
  };
  const auto fetch_operands = [&](int stage, int tile, int slot) {
    const std::int64_t row = row_of(tile, slot);
    const bool exists = own_exists && row < p.shape.rows;
    copy_async(&shared.operands[stage][slot][0][threadIdx.x], p.x + row * in + own_column, exists);
    if constexpr (kGated)
      copy_async(&shared.operands[stage][slot][1][threadIdx.x],
                 p.z + row * p.shape.z_stride + own_column, exists);
  };

  int tile = blockIdx.y;
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage == kStages - 1) fetch_rows(tile, 0);
    commit_copies();
    const int later = tile + stage * gridDim.y;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (later < row_tiles) fetch_operands(stage, later, slot);
    commit_copies();
  }
  load_v(shared.v, p.v + column0, in, out, in - column0);

  float dv[kFragmentsA][kFragmentsB][4] = {};
  int stage = 0;
  for (int buffer = 0; tile < row_tiles; buffer ^= 1) {
    const int next = tile + gridDim.y, later = tile + kStages * gridDim.y;
    T* const dy_tile = shared.dy[buffer];
    wait_copies<1>();  // dy and y; x and z may still be under way
    __syncthreads();   // and all have left the other buffer, and o
    find_m(buffer);
    if (next < row_tiles) fetch_rows(next, buffer ^ 1);
    commit_copies();

    float sums[kHalves][4][4] = {};
#pragma unroll
    for (int k = 0; k < kOut; k += 16) {
      unsigned a[kHalves][4], b[2][4];
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
        load_matrices<false>(
            a[half], chunk(dy_tile, first_row + half * 16 + lane % 16, k / kChunk + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices<true>(
            b[j], chunk(shared.v, k + lane % 16, (first_column + j * 16) / kChunk + lane / 16));
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_add<T>(sums[half][j], a[half], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }

    wait_copies<2 * kStages - 1>();  // x and z; others may still be under way
    barrier(1 + kWarpsAcross + warp / kWarpsAcross, kWarpsAcross * kWarp);  // m of these rows
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float(&four)[4][4] = sums[slot / 2];
      const int i = slot % 2 * 2;
      const float product[8] = {four[0][i], four[0][i + 1], four[1][i], four[1][i + 1],
                                four[2][i], four[2][i + 1], four[3][i], four[3][i + 1]};
      const uint4 x = shared.operands[stage][slot][0][threadIdx.x];
      const uint4 z = kGated ? shared.operands[stage][slot][kGated][threadIdx.x] : uint4{};
      const int row_in_tile = first_row + slot * 8 + g;
      uint4 o, dx, dz;
      gradients<kGated, T>(product, shared.r[buffer][row_in_tile], shared.m[row_in_tile], x, z, o,
                           dx, dz);
      *reinterpret_cast<uint4*>(chunk(shared.o, row_in_tile, first_column / kChunk + q)) = o;
      const std::int64_t row = row_of(tile, slot);
      if (own_exists && row < p.shape.rows) {
        *reinterpret_cast<uint4*>(p.dx + row * in + own_column) = dx;
        if constexpr (kGated)
          *reinterpret_cast<uint4*>(p.dz + row * p.shape.z_stride + own_column) = dz;
      }
      if (later < row_tiles) fetch_operands(stage, later, slot);
    }
    commit_copies();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    barrier(1 + warp % kWarpsAcross, kWarpsDown * kWarp);  // r o of these columns

#pragma unroll
    for (int k = 0; k < kRows; k += 16) {
      unsigned a[kFragmentsA][4], b[kFragmentsB / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsA; ++i)
        load_matrices<true>(a[i],
                            chunk(dy_tile, k + lane % 8 + lane / 16 * 8,
                                  (warp / kWarpsAcross * kFragmentsA + i) * 2 + lane / 8 % 2));
#pragma unroll
      for (int j = 0; j < kFragmentsB / 2; ++j)
        load_matrices<true>(
            b[j], chunk(shared.o, k + lane % 16, first_column / kChunk + j * 2 + lane / 16));
#pragma unroll
      for (int i = 0; i < kFragmentsA; ++i)
#pragma unroll
        for (int j = 0; j < kFragmentsB; ++j)
          multiply_add<T>(dv[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    tile = next;
  }

  float4* const to =
      reinterpret_cast<float4*>(args.parts) +
      (std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * (kFragmentsA * kFragmentsB * kThreads) +
      threadIdx.x;
#pragma unroll
  for (int i = 0; i < kFragmentsA; ++i)
#pragma unroll
    for (int j = 0; j < kFragmentsB; ++j)
      to[(i * kFragmentsB + j) * kThreads] = {dv[i][j][0], dv[i][j][1], dv[i][j][2], dv[i][j][3]};
}

struct Cut {
  int tiles;   // of columns
  int slices;  // of rows; 0: not a shape for this kernel
};

// Slices for every multiprocessor to have its block.
Cut cut_of(const CudaQueue& queue, const RmsNormLinearShape& s, std::size_t bytes) {
  const int tiles = ceil_div(s.in, kColumns);
  const std::int64_t row_tiles = ceil_div(s.rows, kRows);
  if (s.out > kOut || s.out % kChunk || s.in % kChunk || s.z_stride % kChunk ||
      bytes > queue.limits.shared_bytes_per_block || row_tiles > kMaxGrid)
    return {tiles, 0};
  const int slices = std::max(kBlocks * queue.limits.multiprocessors / tiles, 1);
  return {tiles, static_cast<int>(std::min<std::int64_t>(slices, row_tiles))};
}

template <class T>
Cut cut_of(const CudaQueue& queue, const RmsNormLinearShape& s) {
  return cut_of(queue, s, s.gated() ? sizeof(Shared<T, true>) : sizeof(Shared<T, false>));
}

template <class T, bool kGated>
void launch_backward(CudaQueue& queue, const BackwardArgs<T>& args, const Cut& cut) {
  launch(queue, "rmsnorm_linear_backward", backward_kernel<T, kGated>,
         dim3(static_cast<unsigned>(cut.tiles), static_cast<unsigned>(cut.slices)), kThreads,
         sizeof(Shared<T, kGated>), args);
}

}  // namespace

template <class T>
std::size_t rmsnorm_linear_backward_fused_workspace(const CudaQueue& queue,
                                                    const RmsNormLinearShape& s) {
  const Cut cut = cut_of<T>(queue, s);
  return sizeof(float) * cut.slices * cut.tiles * kOut * kColumns;
}

template <class T>
bool rmsnorm_linear_backward_fused(CudaQueue& queue, const RmsNormLinearBackward<T>& p) {
  const Cut cut = cut_of<T>(queue, p.shape);
  const std::initializer_list<const void*> arrays = {p.dy, p.y, p.v, p.x, p.z, p.dx, p.dz, p.dv};
  if (!cut.slices || !std::all_of(arrays.begin(), arrays.end(), [](const void* array) {
        return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
      }))
    return false;
  const BackwardArgs<T> args = {p, static_cast<float*>(p.workspace)};
  if (p.shape.gated()) launch_backward<T, true>(queue, args, cut);
  else launch_backward<T, false>(queue, args, cut);
  return true;
}

template <class T>
void rmsnorm_linear_backward_fused_weight(CudaQueue& queue, const RmsNormLinearBackward<T>& p) {
  const Cut cut = cut_of<T>(queue, p.shape);
  if (!cut.slices) return;
  add_slices(queue, {.tile = kTile,
                     .tiles_a = 1,
                     .tiles_b = cut.tiles,
                     .groups = 1,
                     .in = p.shape.in,
                     .out = p.shape.out,
                     .slices = cut.slices,
                     .bias_slices = 0,
                     .parts = static_cast<const float*>(p.workspace),
                     .bias_parts = nullptr,
                     .dw = p.dv,
                     .dbias = nullptr});
}

template std::size_t rmsnorm_linear_backward_fused_workspace<f16>(const CudaQueue&,
                                                                  const RmsNormLinearShape&);
template std::size_t rmsnorm_linear_backward_fused_workspace<bf16>(const CudaQueue&,
                                                                   const RmsNormLinearShape&);
template bool rmsnorm_linear_backward_fused(CudaQueue&, const RmsNormLinearBackward<f16>&);
template bool rmsnorm_linear_backward_fused(CudaQueue&, const RmsNormLinearBackward<bf16>&);

template void rmsnorm_linear_backward_fused_weight(CudaQueue&, const RmsNormLinearBackward<f16>&);
template void rmsnorm_linear_backward_fused_weight(CudaQueue&, const RmsNormLinearBackward<bf16>&);

}  // namespace fm
