// The walkers of the split backward kernel.
#pragma once

#include "kernels/selective_scan/selective_scan_backward_split.cuh"
#include "kernels/selective_scan/selective_scan_backward_walk.cuh"

namespace fm::scan {

// Loads that stay where they are written, so that what they hide behind hides them.
__device__ __forceinline__ float4 load_now(const float4* from) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ uint2 load_now_or_zero(const void* from, bool real) {
  uint2 v;
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0; "
      "@p ld.global.nc.v2.u32 {%0, %1}, [%2]; }"
      : "=&r"(v.x), "=&r"(v.y)
      : "l"(from), "r"(static_cast<unsigned>(real)));
  return v;
}
// A store no load of the walk has to wait for.
__device__ __forceinline__ void store_apart(float4* to, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "f"(x), "f"(y),
               "f"(z), "f"(w));
}

// Decay rates and saved states of a lane's elements, on their way.
struct WalkStart {
  float4 rates[2];  // [channel]: of four states
  uint2 saved[2];
};

template <class T, int kStates>
struct Walker {
  using Tile = BackwardTile<kStates>;
  using Cut = Split<kStates>;
  using Layout = SplitLayout<kStates>;
  const SplitPlace<T, kStates>& place;
  static constexpr int step_floats = sizeof(typename TeamShared<kStates>::Step) / 4;
  static constexpr int slot_floats = kBlockSteps * step_floats;
  int team, strip, g, l;
  // Of a step in the team's first slot: delta and dy of the lane's two channels, and what the lane
  // has of the B operands: of the outer product, and of dA's, delta as a diagonal.
  const float *terms, *outer, *diagonal;
  float4* sums;
  const float4* rates;  // of the CTA's first tile
  const T* saved;       // of block 0 and the CTA's first channel

  __device__ Walker(const SplitPlace<T, kStates>& at)
      : place(at),
        team(at.warp_index / Cut::strips),
        strip(at.warp_index % Cut::strips),
        g(static_cast<unsigned>(at.lane) / 4),
        l(static_cast<unsigned>(at.lane) % 4) {
    const auto& step = at.team(team).slots[0].steps[0];
    const float* zero = &step.zeros[0].x;
    terms = in_register(&step.terms[l].x);
    outer = in_register(l < 2 ? &step.outer[g / 2].x + 2 * l + g % 2 : zero);
    diagonal = in_register(g / 2 == l ? &step.diagonal[l].x + g % 2 * 2 : zero);
    sums = in_register(at.team(team).sums[strip] + at.lane);
    const Where& where = at.where();
    const std::int64_t tile = static_cast<std::int64_t>(where.part.direction) *
                                  ceil_div(where.per_direction, Tile::channels) +
                              where.part.first / Tile::channels;
    rates = reinterpret_cast<const float4*>(at.args.rates) +
            (tile * Cut::strips + strip) * 2 * kWarp + at.lane;
    saved = static_cast<const T*>(at.args.p.states) +
            (where.part.image_direction * where.blocks * where.per_direction + where.part.first) *
                kStates +
            strip * Tile::states + 4 * g;
  }

  // Of a block and a tile; the states before block 0 are zero. Channels beyond the last read the
  // last one's: their other factors are zero.
  __device__ __forceinline__ WalkStart fetch(int block, int tile) const {
    const Where& where = place.where();
    const float4* rates_at = rates + tile * (Cut::strips * 2 * kWarp);
    const int last = where.part.channels - 1, c = tile * Tile::channels + 2 * l;
    const T* at = saved + static_cast<std::uint64_t>(static_cast<unsigned>(block)) *
                              static_cast<unsigned>(where.per_direction * kStates);
    return {{load_now(rates_at), load_now(rates_at + kWarp)},
            {load_now_or_zero(at + min(c, last) * kStates, block > 0),
             load_now_or_zero(at + min(c + 1, last) * kStates, block > 0)}};
  }

  // One block of steps of this warp's strip of a tile, up and back.
  template <class FetchNext>
  __device__ __forceinline__ void walk(const float* b_at, float4* carried, const Turn& turn,
                                       const WalkStart& start, FetchNext fetch_next,
                                       float (&db)[2][4], float (&dc)[2][4]) const {
    const int slot = turn.slot * slot_floats;
    float rate[8], h[kBlockSteps + 1][8], decay[kBlockSteps][8];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float rates4[4] = {start.rates[c].x, start.rates[c].y, start.rates[c].z,
                               start.rates[c].w};
      const float2 low = widen_pair<T>(start.saved[c].x), high = widen_pair<T>(start.saved[c].y);
      const float saved4[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          rate[4 * j + 2 * c + r] = rates4[2 * j + r];
          h[0][4 * j + 2 * c + r] = saved4[2 * j + r];
        }
    }
    Barriers& barriers = place.barriers();
    barrier_wait(barriers.full[team][turn.slot], turn.parity);
    // Column g of the sums over channels is to be step g.
    const float* own = terms + slot + min(g, kBlockSteps - 1) * step_floats;
    const float2 dy_own = *reinterpret_cast<const float2*>(own + 2);
    const float2 delta_u_own = *reinterpret_cast<const float2*>(own + 16);
#pragma unroll
    for (int t = 0; t < kBlockSteps; ++t) {
      float b[4];
      load_wide(b, b_at + 2 * t * kStates);
      const float part = outer[slot + t * step_floats];
      const float2 delta = *reinterpret_cast<const float2*>(terms + slot + t * step_floats);
      const float2 weights = {g == t ? dy_own.x : 0.0f, g == t ? dy_own.y : 0.0f};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float added[4];  // [row][column]
        outer_product<T>(added, b + 2 * j, part);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int e = 4 * j + 2 * c + r;
            decay[t][e] = exp2_approx((c ? delta.y : delta.x) * rate[e]);
            h[t + 1][e] = fmaf(decay[t][e], h[t][e], added[2 * r + c]);
          }
        add_weighted<false>(dc[j], &h[t + 1][4 * j], weights);
      }
    }

    float q[2][4], da[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_wide(q[j], &carried[j * kWarp].x);
      load_wide(da[j], &carried[(2 + j) * kWarp].x);
    }
    float b[2][4], c_row[2][4];
    float2 dy[2], diagonal_at[2];
    const auto load = [&](int t) {
      load_wide(b[t % 2], b_at + 2 * t * kStates);
      load_wide(c_row[t % 2], b_at + (2 * t + 1) * kStates);
      dy[t % 2] = *reinterpret_cast<const float2*>(terms + slot + t * step_floats + 2);
      diagonal_at[t % 2] = *reinterpret_cast<const float2*>(diagonal + slot + t * step_floats);
    };
    load(kBlockSteps - 1);
    // The sums of the tile before.
    const Turn before = turn.before();
    barrier_wait(barriers.drained[team][before.slot], before.parity);
#pragma unroll
    for (int t = kBlockSteps - 1; t >= 0; --t) {
      if (t > 0) load(t - 1);  // ahead of the store that it must not wait for
      if (t == 5) fetch_next();
      const float2 weights = {g == t ? delta_u_own.x : 0.0f, g == t ? delta_u_own.y : 0.0f};
      float s1[2], s2[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float gradient[4];
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            gradient[2 * c + r] =
                fmaf(c_row[t % 2][2 * j + r], c ? dy[t % 2].y : dy[t % 2].x, q[j][2 * c + r]);
        add_weighted<false>(db[j], gradient, weights);
        float through[4];
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = 2 * c + r, e = 4 * j + i;
            const bool first = j == 0 && r == 0;
            s1[c] =
                first ? b[t % 2][0] * gradient[i] : fmaf(b[t % 2][2 * j + r], gradient[i], s1[c]);
            q[j][i] = gradient[i] * decay[t][e];
            through[i] = q[j][i] * h[t][e];
            s2[c] = first ? rate[e] * through[i] : fmaf(rate[e], through[i], s2[c]);
          }
        multiply(da[j], through, diagonal_at[t % 2].x, diagonal_at[t % 2].y);
      }
      store_apart(sums + t * Tile::sums, s1[0], s1[1], s2[0], s2[1]);
    }
    arrive(barriers.walked[team]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      carried[j * kWarp] = {q[j][0], q[j][1], q[j][2], q[j][3]};
      carried[(2 + j) * kWarp] = {da[j][0], da[j][1], da[j][2], da[j][3]};
    }
  }

  __device__ __forceinline__ void run() const {
    const Part& part = place.where().part;
    const int tiles = ceil_div(part.channels, Tile::channels);
    const int first_block = part.first_block, last_block = part.end_block - 1;
    WalkStart start;
    if (team < tiles) start = fetch(last_block, team);
    float db[2][4] = {}, dc[2][4] = {};
    Turn turn;
#pragma unroll 1
    for (int block = last_block; block >= first_block; --block) {
      if (block < last_block) place.barriers().wait_for_staged(last_block - block);
      const float* b_at = in_register(place.matrices(block) + strip * Tile::states + 4 * g);
      float4* carried = in_register(place.template shared<float4>(Layout::carried) +
                                    (team * Cut::strips + strip) * 4 * kWarp + place.lane);
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams) {
        WalkStart next;
        const auto fetch_next = [&] {
          const bool same = tile + Cut::teams < tiles;
          next = fetch(same ? block : max(block - 1, 0), same ? tile + Cut::teams : team);
        };
        walk(b_at, carried, turn, start, fetch_next, db, dc);
        start = next;
        turn.advance();
        carried += Cut::teams * Cut::strips * 4 * kWarp;
      }
      const int i = last_block - block;
      barrier_wait(place.barriers().matrices_stored, (i + 1) & 1);
      float4* to = place.gathered(place.warp_index) + place.lane;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[j * kWarp] = {db[j][0], db[j][1], db[j][2], db[j][3]};
        to[(2 + j) * kWarp] = {dc[j][0], dc[j][1], dc[j][2], dc[j][3]};
#pragma unroll
        for (int i = 0; i < 4; ++i) db[j][i] = dc[j][i] = 0;
      }
      arrive(place.barriers().gathered[i & 1]);
    }
    // dA of this warp's elements.
    float* out = place.args.parameters +
                 (static_cast<std::int64_t>(part.image) * place.args.chunks + part.chunk) *
                     place.args.p.shape.channels * (kStates + 2) +
                 static_cast<std::int64_t>(place.where().channel) * kStates + strip * Tile::states +
                 4 * g;
    for (int tile = team; tile < tiles; tile += Cut::teams) {
      const float4* carried = place.template shared<const float4>(SplitLayout<kStates>::carried) +
                              (tile * Cut::strips + strip) * 4 * kWarp + place.lane;
      const float4 a = carried[2 * kWarp], b = carried[3 * kWarp];
      const int c = tile * Tile::channels + 2 * l;
      float2* to = reinterpret_cast<float2*>(out + static_cast<std::int64_t>(c) * kStates);
      if (c < part.channels)
        to[0] = {kTf32Cut * a.x, kTf32Cut * a.z}, to[1] = {kTf32Cut * b.x, kTf32Cut * b.z};
      if (c + 1 < part.channels)
        to[kStates / 2] = {kTf32Cut * a.y, kTf32Cut * a.w},
                     to[kStates / 2 + 1] = {kTf32Cut * b.y, kTf32Cut * b.w};
    }
  }
};

}  // namespace fm::scan
