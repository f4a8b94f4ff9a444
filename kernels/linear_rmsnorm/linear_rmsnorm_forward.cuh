// A warp's tile in linear_rmsnorm's forward kernels: the product, and the norm of its rows before
// they leave the registers.
#pragma once

#include "kernels/linear_rmsnorm/linear_rmsnorm_fused.cuh"

namespace fm::linear_rmsnorm {

constexpr int kMostWarps = 12;
constexpr int kLeastTiles = 8;  // on an H100 9 000 rows of two groups

template <int kQuads>
using Sums = float[kQuads * 4 + 1][4];  // of 8 columns each; the last: the octet alone

// sums += 64 columns of x times those of W.
template <int kQuads, class T>
__device__ __forceinline__ void multiply_stage(Sums<kQuads>& sums, T* x, T* w) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int two = 0; two < kPanel / 32; ++two) {  // steps of 16
    unsigned a[2][4], b[4];
#pragma unroll
    for (int k = 0; k < 2; ++k)
      load_matrices<false>(a[k], panel_chunk(x, lane % 16, two * 4 + k * 2 + lane / 16));
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int pair = 0; pair < kQuads * 2; ++pair) {  // 16 columns, low and high half of k
        load_matrices<false>(b, panel_chunk(w, pair * 16 + lane / 16 * 8 + lane % 8,
                                            two * 4 + k * 2 + lane / 8 % 2));
        multiply_add<T>(sums[pair * 2], a[k], b[0], b[1]);
        multiply_add<T>(sums[pair * 2 + 1], a[k], b[2], b[3]);
      }
    load_matrices<false>(b, panel_chunk(w, kQuads * 32 + lane % 8, two * 4 + lane / 8));
    multiply_add<T>(sums[kQuads * 4], a[0], b[0], b[1]);
    multiply_add<T>(sums[kQuads * 4], a[1], b[2], b[3]);
  }
}

// Writes the row that the lane holds in elements 2 i, 2 i + 1 of its sums. `at`: of the group.
template <int kQuads, class T>
__device__ __forceinline__ void finish_row(const Sums<kQuads>& sums, int i, bool exists,
                                           std::int64_t at, const LinearRmsNormForward<T>& p,
                                           const Columns& columns, const Octets<kQuads>& octets,
                                           const float* weight) {
  const int q = threadIdx.x % 4;
  const int alone = octets.alone() * kOctet + q * 2;
  const float* const last = sums[kQuads * 4] + i * 2;
  PerSegment squares;
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* pair = sums[quad * 4 + j] + i * 2;
      sum = fmaf(pair[0], pair[0], fmaf(pair[1], pair[1], sum));
    }
    squares.add(columns.segment(octets.of(quad, q) * kOctet), sum);
  }
  squares.add(columns.segment(alone), fmaf(last[0], last[0], last[1] * last[1]));
  squares.sum_lanes();
  PerSegment r;
#pragma unroll
  for (int s = 0; s < kSegments; ++s)
    r.at[s] = rsqrtf(fmaf(squares.at[s], columns.inverse[s], columns.eps));
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    const int column = octets.of(quad, q) * kOctet;
    if (!exists || column >= columns.out) continue;
    const float scale = r.of(columns.segment(column));
    float raw[kOctet], y[kOctet];
#pragma unroll
    for (int c = 0; c < kOctet; ++c) raw[c] = sums[quad * 4 + c / 2][i * 2 + c % 2];
#pragma unroll
    for (int c = 0; c < kOctet; c += 4) {
      float four[4];
      load_wide(four, weight + column + c);
#pragma unroll
      for (int d = 0; d < 4; ++d) y[c + d] = raw[c + d] * (scale * four[d]);
    }
    if (p.keep_raw) store_narrow(p.raw + at + column, raw);
    store_narrow(p.y + at + column, y);
  }
  if (!exists || alone >= columns.out) return;
  const float scale = r.of(columns.segment(alone));
  if (p.keep_raw)
    *reinterpret_cast<unsigned*>(p.raw + at + alone) = narrow_pair<T>(last[0], last[1]);
  *reinterpret_cast<unsigned*>(p.y + at + alone) =
      narrow_pair<T>(last[0] * (scale * weight[alone]), last[1] * (scale * weight[alone + 1]));
}

// Launches a kernel of these arguments with as many warps a block as its shared memory has room
// for, `fixed` bytes and `per_warp` of each; false where they are too few.
template <class P>
bool launch_forward(CudaQueue& queue, const char* name, void (*kernel)(Deferred<P>, Columns),
                    const LinearRmsNormShape& shape, std::size_t fixed, std::size_t per_warp,
                    const P& p) {
  const int warps = warps_of(queue, fixed, per_warp, kMostWarps);
  if (warps < kLeastWarps) return false;
  const int blocks = blocks_of(queue, shape, ceil_div(shape.rows, kTileRows));
  launch(queue, name, kernel, dim3(static_cast<unsigned>(blocks * shape.groups)), warps * kWarp,
         fixed + warps * per_warp, p, Columns::of(shape));
  return true;
}

}  // namespace fm::linear_rmsnorm
