// The main loop of the selective scan's backward kernel: one block of steps of 256 elements, up and
// back, by one warp.
#pragma once

#include "kernels/selective_scan/selective_scan_backward.cuh"

namespace fm::scan {

// d += a b with a 16 x 8 and b 8 x 8, cut to tf32.
__device__ __forceinline__ void multiply(float (&d)[4], const float* a, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Adds the sums over a quad's channels, weighted, to the column of `weights` that is not zero. In
// float, and where few states leave few sums to average over, of factors in two tf32 parts each.
template <bool kExact>
__device__ __forceinline__ void add_weighted(float (&sum)[4], const float* quad, float2 weights) {
  if constexpr (kExact) {
    float high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = tf32_cut(quad[i]);
      low[i] = quad[i] - high[i];
    }
    const float2 cut = {tf32_cut(weights.x), tf32_cut(weights.y)};
    multiply(sum, low, cut.x, cut.y);
    multiply(sum, high, weights.x - cut.x, weights.y - cut.y);
    multiply(sum, high, cut.x, cut.y);
  } else {
    multiply(sum, quad, weights.x, weights.y);
  }
}

// delta u (x) B: of rows (g, g + 8) and columns (2 l, 2 l + 1).
template <class T>
__device__ __forceinline__ void outer_product(float (&d)[4], const float* b, float delta_u) {
  float a[2] = {b[0], b[1]};
  if constexpr (std::is_same_v<T, float>) {
    if (thread_index() % 4 == 2) {  // the part of B that tf32 cuts off
      a[0] -= tf32_cut(a[0]);
      a[1] -= tf32_cut(a[1]);
    }
  }
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%7,%7,%7,%7};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(delta_u)),
        "f"(0.0f));
}

// A block of one strip of a tile. `sums` are added to where they are not of the first strip.
template <class T, int kStates, class FetchNext>
__device__ __forceinline__ void walk_strip(const Place<T, kStates>& place, int tile, int strip,
                                           FetchNext fetch_next,
                                           float (&db)[BackwardTile<kStates>::rows][4],
                                           float (&dc)[BackwardTile<kStates>::rows][4]) {
  using Tile = BackwardTile<kStates>;
  using Layout = BackwardLayout<T, kStates>;
  constexpr int wide = Tile::wide;
  constexpr bool exact = std::is_same_v<T, float> || kStates == 8;
  constexpr float scale = exact ? 1.0f : kTf32Cut * kTf32Cut;
  WarpShared<T, kStates>& warp = place.warp();
  const int lane = place.lane, g = lane / 4, l = lane % 4;
  const float* matrices =
      place.template shared<float>(Layout::matrices) + strip * Tile::states + wide * g;
  // The state of element 4 quad + 2 column + row among the lane's neighbouring ones, its group of
  // channels, and its row of sums over channels.
  const auto near = [](int quad, int row) { return Tile::groups == 1 ? 2 * quad + row : row; };
  const auto group_of = [](int quad) { return Tile::groups == 1 ? 0 : quad; };
  const auto row_of_quad = [](int quad) { return Tile::groups == 1 ? quad : 0; };

  float rate[8], h[kBlockSteps + 1][8], decay[kBlockSteps][8];
  float rates[8 / wide][wide], saved[8 / wide][wide];
  copies_arrived();
#pragma unroll
  for (int i = 0; i < 8 / wide; ++i) {
    load_wide(rates[i], warp.rates[i][lane].at);
    load_wide(saved[i], warp.saved[i][lane].at);
  }
  fetch_next();
  const int own = min(g, kBlockSteps - 1);  // the step of the lane's weights
#pragma unroll
  for (int k = 0; k < Tile::groups; ++k) {
    const float4 term = warp.terms[own][k][l];
    warp.weights[k][8 * g][l] = {term.z * scale, term.w * scale};
  }
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = Tile::groups == 1 ? c : 2 * j + c;
        rate[4 * j + 2 * c + r] = rates[i][near(j, r)];
        h[0][4 * j + 2 * c + r] = saved[i][near(j, r)];
      }
#pragma unroll
  for (int t = 0; t < kBlockSteps; ++t) {
    float b[wide];
    load_wide(b, matrices + 2 * t * Tile::padded);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int group = group_of(j);
      float added[4];  // [row][column]
      outer_product<T>(added, b + near(j, 0), warp.outer[t][group][l][g]);
      const float2 delta = *reinterpret_cast<const float2*>(&warp.terms[t][group][l]);
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int e = 4 * j + 2 * c + r;
          decay[t][e] = exp2_approx((c ? delta.y : delta.x) * rate[e]);
          h[t + 1][e] = fmaf(decay[t][e], h[t][e], added[2 * r + c]);
        }
      add_weighted<exact>(dc[row_of_quad(j)], &h[t + 1][4 * j],
                          warp.weights[group][kBlockSteps * g + t][l]);
    }
  }
#pragma unroll
  for (int k = 0; k < Tile::groups; ++k) {
    const float4 term = warp.terms[own][k][l], end = warp.finish[own][k][l];
    warp.weights[k][8 * g][l] = {term.x * end.x * scale, term.y * end.y * scale};
  }

  float4* q_at = place.template shared<float4>(place.at().q) +
                 (tile * Tile::strips + strip) * 2 * kWarp + lane;
  float4* da_at = place.template shared<float4>(place.at().da) +
                  (tile * Tile::strips + strip) * 2 * kWarp + lane;
  float q[8], da[8];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float4 q4 = q_at[j * kWarp], da4 = da_at[j * kWarp];
    q[4 * j] = q4.x, q[4 * j + 1] = q4.y, q[4 * j + 2] = q4.z, q[4 * j + 3] = q4.w;
    da[4 * j] = da4.x, da[4 * j + 1] = da4.y, da[4 * j + 2] = da4.z, da[4 * j + 3] = da4.w;
  }
  // Over states: g B, and A q h, of two channels. Stored at the end: no load of a step then has to
  // wait for the store of another.
  float sums[kBlockSteps][Tile::groups][4] = {};
#pragma unroll
  for (int t = kBlockSteps - 1; t >= 0; --t) {
    float b[wide], c_row[wide];
    load_wide(b, matrices + 2 * t * Tile::padded);
    load_wide(c_row, matrices + (2 * t + 1) * Tile::padded);
    if (strip > 0) {
#pragma unroll
      for (int k = 0; k < Tile::groups; ++k) {
        const float4 before = warp.sums[k][t * Tile::sums + lane];
        sums[t][k][0] = before.x, sums[t][k][1] = before.y;
        sums[t][k][2] = before.z, sums[t][k][3] = before.w;
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int group = group_of(j);
      const float4 term = warp.terms[t][group][l];
      float gradient[4];
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          gradient[2 * c + r] = fmaf(c_row[near(j, r)], c ? term.w : term.z, q[4 * j + 2 * c + r]);
      add_weighted<exact>(db[row_of_quad(j)], gradient,
                          warp.weights[group][kBlockSteps * g + t][l]);
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int e = 4 * j + 2 * c + r;
          sums[t][group][c] = fmaf(b[near(j, r)], gradient[2 * c + r], sums[t][group][c]);
          q[e] = gradient[2 * c + r] * decay[t][e];
          const float through = q[e] * h[t][e];
          sums[t][group][2 + c] = fmaf(rate[e], through, sums[t][group][2 + c]);
          da[e] = fmaf(c ? term.y : term.x, through, da[e]);
        }
    }
  }
#pragma unroll
  for (int t = 0; t < kBlockSteps; ++t)
#pragma unroll
    for (int k = 0; k < Tile::groups; ++k)
      warp.sums[k][t * Tile::sums + lane] = {sums[t][k][0], sums[t][k][1], sums[t][k][2],
                                             sums[t][k][3]};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    q_at[j * kWarp] = {q[4 * j], q[4 * j + 1], q[4 * j + 2], q[4 * j + 3]};
    da_at[j * kWarp] = {da[4 * j], da[4 * j + 1], da[4 * j + 2], da[4 * j + 3]};
  }
}

}  // namespace fm::scan
