// What attention's CUDA kernels share: where the rows of a head are, how they are split into
// blocks, and for the 16-bit kernels the tiles of rows in shared memory and registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/attention_check.h"
#include "kernels/attention/attention_mma.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"

namespace fm::attention {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
constexpr std::size_t kPortableShared = 99 * 1024;  // what a block may have on any sm_80 and newer

// Row i of one head starts at `first + i * stride`.
template <class T>
struct Rows {
  T* first;
  std::int64_t stride;
  __device__ T* operator[](int row) const { return first + row * stride; }
};

enum Part { kQ, kK, kV };

// Of [B, L, 3, H, hd] and of [B, L, H, hd].
template <class T>
__device__ Rows<T> rows_of(T* qkv, const AttentionShape& s, int image, int head, Part part) {
  const std::int64_t stride = std::int64_t{3} * s.heads * s.head_dim;
  return {qkv + static_cast<std::int64_t>(image) * s.length * stride +
              (static_cast<std::int64_t>(part) * s.heads + head) * s.head_dim,
          stride};
}
template <class T>
__device__ Rows<T> rows_of(T* o, const AttentionShape& s, int image, int head) {
  const std::int64_t stride = static_cast<std::int64_t>(s.heads) * s.head_dim;
  return {o + static_cast<std::int64_t>(image) * s.length * stride +
              static_cast<std::int64_t>(head) * s.head_dim,
          stride};
}
// Where a head's rows begin in [B, H, L].
__device__ inline std::int64_t stats_of(const AttentionShape& s, int image, int head) {
  return (static_cast<std::int64_t>(image) * s.heads + head) * s.length;
}

// A head's rows go to `blocks` blocks of `warps` warps, each with the same number of rows.
struct Split {
  int blocks, warps;
};
inline Split split_rows(int length, int rows_of_warp, int most_warps) {
  const int tiles = ceil_div(length, rows_of_warp);
  const int blocks = ceil_div(tiles, most_warps);
  return {blocks, ceil_div(tiles, blocks)};
}

// Of all images, which fit a grid.
inline unsigned heads_of(const AttentionShape& s) {
  constexpr int most = 65535;  // of a grid's y and z
  FM_CHECK(s.batch <= most && s.heads <= most, "[attention] batch and heads must be at most ", most,
           " on CUDA, got ", s.batch, " and ", s.heads);
  return static_cast<unsigned>(s.batch) * static_cast<unsigned>(s.heads);
}
// Blocks of one head are neighbours and share its rows in the L2 cache, as do heads of an image.
inline dim3 grid_of(const AttentionShape& s, int blocks) {
  heads_of(s);
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(s.heads),
          static_cast<unsigned>(s.batch)};
}
struct Place {
  int image, head, block;
};
__device__ __forceinline__ Place place_of_block() {
  return {static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x)};
}

// For blocks that walk heads.
__device__ __forceinline__ Place place_of_head(const AttentionShape& s, unsigned head) {
  const unsigned heads = static_cast<unsigned>(s.heads);
  return {static_cast<int>(head / heads), static_cast<int>(head % heads), 0};
}

// Calls f with head_dim padded to what the kernels are built for, a std::integral_constant.
template <class F>
void with_padded_dim(int head_dim, F&& f) {
  if (head_dim <= 16) f(std::integral_constant<int, 16>{});
  else if (head_dim <= 32) f(std::integral_constant<int, 32>{});
  else if (head_dim <= 64) f(std::integral_constant<int, 64>{});
  else f(std::integral_constant<int, 128>{});
}

// ---- 16-bit tiles ----

constexpr int kTile = 16;  // rows of a warp: what one product has

// Elements from a row to the next in shared memory, and where the eight from column 8 * chunk on
// are. Eight rows of a chunk have to fall into different banks: rows of 16 swap their halves every
// four rows, longer ones have 16 bytes more. Rows 16 apart are alike.
template <int D>
constexpr int kStride = D == 16 ? 16 : D + 8;
template <int D>
__device__ __forceinline__ int place_in_shared(int row, int chunk) {
  if constexpr (D == 16) return row * kStride<D> + (chunk ^ (row / 4 % 2)) * 8;
  else return row * kStride<D> + chunk * 8;
}

// Starts copying rows [first, first + count) to shared memory; rows from `length` on and columns
// from head_dim on become zero.
template <int D, class T>
__device__ __forceinline__ void copy_rows(T* to, const Rows<const T>& from, int first, int count,
                                          const AttentionShape& s) {
  constexpr int chunks = D / 8;
  const int chunk = static_cast<int>(threadIdx.x) % chunks;
  const int step = static_cast<int>(blockDim.x) / chunks;
  int row = static_cast<int>(threadIdx.x) / chunks;
  const int there = chunk * 8 < s.head_dim ? s.length - first : 0;
  const T* source = from[first + row] + chunk * 8;
  unsigned target = shared_address(to + place_in_shared<D>(row, chunk));
#pragma unroll 1
  for (; row < count; row += step) {
    copy_async<16>(target, source, row < there);
    source += step * from.stride;
    target += static_cast<unsigned>(step * kStride<D> * sizeof(T));
  }
}

// Sixteen rows as the A of products over their columns, from memory; zeros as above.
template <int D, class T>
__device__ __forceinline__ void load_rows(unsigned (&a)[D / 16][4], const Rows<const T>& from,
                                          int first, const AttentionShape& s) {
  const int lane = threadIdx.x % kWarp, row = first + lane / 4;
  const T* const at = from[row] + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int down = part % 2 * 8, column = i * 16 + part / 2 * 8;
      a[i][part] = row + down < s.length && column < s.head_dim
                       ? *reinterpret_cast<const unsigned*>(at + down * from.stride + column)
                       : 0u;
    }
}

// Sums of sixteen rows, times a factor a row (g and g + 8), rounded and written.
template <int D, class T>
__device__ __forceinline__ void store_rows(const Rows<T>& to, const float (&sum)[D / 8][4],
                                           const float (&factor)[2], int first,
                                           const AttentionShape& s) {
  const int lane = threadIdx.x % kWarp, row = first + lane / 4;
  T* const at = to[row] + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + half * 8 >= s.length) break;
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
      if (i * 8 < s.head_dim)
        *reinterpret_cast<unsigned*>(at + half * 8 * to.stride + i * 8) =
            pack<T>(sum[i][2 * half] * factor[half], sum[i][2 * half + 1] * factor[half]);
  }
}

// The lane's address for load_matrices on 16 rows by 16 columns at `tile`. `by_rows`: rows 0-7
// with both halves of the columns, then rows 8-15: the B of two products over columns. Otherwise
// columns 0-7 of both halves of the rows, then columns 8-15: an A, or transposed the B of two
// products over rows.
template <int D, class T>
__device__ __forceinline__ unsigned by_rows(const T* tile) {
  const int lane = threadIdx.x % kWarp;
  return shared_address(tile + place_in_shared<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
template <int D, class T>
__device__ __forceinline__ unsigned by_columns(const T* tile) {
  const int lane = threadIdx.x % kWarp;
  return shared_address(tile + place_in_shared<D>(lane % 16, lane / 16));
}
// From such an address to the one 16 rows down, and to the one 16 columns to the right.
template <int D>
constexpr unsigned kTileBytes = kTile* kStride<D> * sizeof(f16);
constexpr unsigned kColumnsBytes = 16 * sizeof(f16);

// A value of a row, over the four lanes that hold parts of it.
__device__ __forceinline__ float row_sum(float x) {
  return warp_sum(x, 4);
}
__device__ __forceinline__ float row_max(float x) {
  return warp_max(x, 4);
}

// The backward with one block a head; does nothing and returns false where that is not to be had.
template <class T>
bool backward_head(CudaQueue&, const AttentionBackward<T>&);

// ---- float ----

void forward_float(CudaQueue&, const AttentionForward<float>&);
void backward_float(CudaQueue&, const AttentionBackward<float>&);

}  // namespace fm::attention
