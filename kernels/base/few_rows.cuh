// The core of a product of few rows on the tensor cores, made for the time from its first load to
// its last store: a block's tile is small, so that a hundred rows occupy every multiprocessor; its
// warps share the sum over k, so that each has everything it needs in flight at once, in
// registers; and they add up through shared memory. Elements of 16 bits, sm_80 and newer.
//
// Which k an element of a fragment stands for does not matter as long as A and B agree. A lane
// (g, q) takes 8 neighbours of its row at k = 8 q, one access of 16 bytes, and splits them between
// two steps of the sum: nothing is permuted, and nothing passes through shared memory.
#pragma once

#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"

namespace fm {

constexpr int kFewRows = 32, kFewColumns = 32;  // of a block's tile
constexpr int kFewDepth = 32;                   // of k, a warp and a step
constexpr int kFewPitch = kFewColumns + 8;      // floats: a half-warp's pairs hit different banks

template <int kWarps>
struct FewRowsSums {
  float at[kWarps][kFewRows][kFewPitch];

  // Of all warps: four columns from `column` on.
  __device__ __forceinline__ float4 operator()(int row, int column) const {
    float4 sum = *reinterpret_cast<const float4*>(&at[0][row][column]);
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      const float4 part = *reinterpret_cast<const float4*>(&at[warp][row][column]);
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    return sum;
  }
};

// sums = the tile's product, each warp's part of it; a barrier must follow. a(row, k) and
// b(column, k): eight elements from k on, zeros past the end, as uint4. seen(row, eight) is called
// with what a() gave.
template <class T, int kWarps, int kSteps, class A, class B, class Seen>
__device__ __forceinline__ void multiply_few_rows(FewRowsSums<kWarps>& sums, A&& a, B&& b,
                                                  Seen&& seen) {
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
  uint4 rows[kSteps][4], columns[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int k = (step * kWarps + warp) * kFewDepth + q * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[step][i] = a(i * 8 + g, k);
#pragma unroll
    for (int j = 0; j < 4; ++j) columns[step][j] = b(j * 8 + g, k);
  }
  float sum[2][4][4] = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) seen(i * 8 + g, rows[step][i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 &upper = rows[step][half * 2], &lower = rows[step][half * 2 + 1];
      const unsigned first[4] = {upper.x, lower.x, upper.y, lower.y};
      const unsigned second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4& column = columns[step][j];
        multiply_add<T>(sum[half][j], first, column.x, column.y);
        multiply_add<T>(sum[half][j], second, column.z, column.w);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(&sums.at[warp][half * 16 + i * 8 + g][j * 8 + q * 2]) =
            make_float2(sum[half][j][i * 2], sum[half][j][i * 2 + 1]);
}

// Calls f<warps, steps>() with the fewest that hold a sum of k products; false where none does.
template <class F>
bool with_few_rows_depth(int k, F&& f) {
  if (k <= 4 * kFewDepth) f.template operator()<4, 1>();
  else if (k <= 8 * kFewDepth) f.template operator()<8, 1>();
  else if (k <= 16 * kFewDepth) f.template operator()<8, 2>();
  else return false;
  return true;
}

}  // namespace fm
