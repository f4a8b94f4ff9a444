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
inline dim3 grid_of(const AttentionShape& s, const Split& split) {
  const std::int64_t blocks = static_cast<std::int64_t>(s.batch) * s.heads * split.blocks;
  FM_CHECK(blocks <= kMaxGrid, "[attention] batch * heads * length must fit one grid, got ",
           s.batch, ", ", s.heads, " and ", s.length);
  return dim3(static_cast<unsigned>(blocks));
}

// The block's place; blocks of one head are neighbours and share its rows in the L2 cache.
struct Place {
  int image, head, block;
};
__device__ inline Place place_of(const AttentionShape& s, int blocks) {
  const int index = static_cast<int>(blockIdx.x), head = index / blocks;
  return {head / s.heads, head % s.heads, index % blocks};
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

// Elements from a row to the next in shared memory: 16 bytes more than the row, so that the eight
// rows of a matrix fall into different banks.
template <int D>
constexpr int kStride = D + 8;

// Starts copying rows [first, first + count) to shared memory; rows from `length` on and columns
// from head_dim on become zero.
template <int D, class T>
__device__ __forceinline__ void copy_rows(T* to, const Rows<const T>& from, int first, int count,
                                          const AttentionShape& s) {
  constexpr int chunks = D / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
    const int row = i / chunks, column = i % chunks * 8;
    const bool there = first + row < s.length && column < s.head_dim;
    copy_async<16>(to + row * kStride<D> + column, there ? from[first + row] + column : from.first,
                   there);
  }
}

// Sixteen rows as the A of products over their columns, from memory; zeros as above.
template <int D, class T>
__device__ __forceinline__ void load_rows(unsigned (&a)[D / 16][4], const Rows<const T>& from,
                                          int first, const AttentionShape& s) {
  const int lane = threadIdx.x % kWarp, row = first + lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int at = row + part % 2 * 8, column = i * 16 + part / 2 * 8 + pair;
      a[i][part] = at < s.length && column < s.head_dim
                       ? *reinterpret_cast<const unsigned*>(from[at] + column)
                       : 0u;
    }
}

// Sums of sixteen rows, times a factor a row (g and g + 8), rounded and written.
template <int D, class T>
__device__ __forceinline__ void store_rows(const Rows<T>& to, const float (&sum)[D / 8][4],
                                           const float (&factor)[2], int first,
                                           const AttentionShape& s) {
  const int lane = threadIdx.x % kWarp, pair = lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + lane / 4 + half * 8;
    if (row >= s.length) continue;
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
      if (i * 8 < s.head_dim)
        *reinterpret_cast<unsigned*>(to[row] + i * 8 + pair) =
            pack<T>(sum[i][2 * half] * factor[half], sum[i][2 * half + 1] * factor[half]);
  }
}

// The lane's address for load_matrices on 16 rows by 16 columns at `tile`. `by_rows`: rows 0-7
// with both halves of the columns, then rows 8-15: the B of two products over columns. Otherwise
// columns 0-7 of both halves of the rows, then columns 8-15: an A, or transposed the B of two
// products over rows.
template <int D, class T>
__device__ __forceinline__ const T* by_rows(const T* tile) {
  const int lane = threadIdx.x % kWarp;
  return tile + (lane / 16 * 8 + lane % 8) * kStride<D> + lane / 8 % 2 * 8;
}
template <int D, class T>
__device__ __forceinline__ const T* by_columns(const T* tile) {
  const int lane = threadIdx.x % kWarp;
  return tile + lane % 16 * kStride<D> + lane / 16 * 8;
}

// A value of a row, over the four lanes that hold parts of it.
__device__ __forceinline__ float row_sum(float x) {
  return warp_sum(x, 4);
}
__device__ __forceinline__ float row_max(float x) {
  return warp_max(x, 4);
}

// ---- float ----

void forward_float(CudaQueue&, const AttentionForward<float>&);
void backward_float(CudaQueue&, const AttentionBackward<float>&);

}  // namespace fm::attention
