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
  const SplitPlace<T, kStates>& place;
  int team, strip, g, l;
  const float4* rates;  // of the CTA's first tile
  const T* saved;       // of block 0 and the CTA's first channel

  __device__ Walker(const SplitPlace<T, kStates>& at)
      : place(at),
        team(at.warp_index / Cut::strips),
        strip(at.warp_index % Cut::strips),
        g(static_cast<unsigned>(at.lane) / 4),
        l(static_cast<unsigned>(at.lane) % 4) {
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

  // Of the block whose states start at block_at, block 0's being zero. Channels beyond the last
  // read the last one's: their other factors are zero.
  __device__ __forceinline__ WalkStart fetch(const T* block_at, bool real, int tile) const {
    const float4* rates_at = rates + tile * (Cut::strips * 2 * kWarp);
    const int last = place.where().part.channels - 1, c = tile * Tile::channels + 2 * l;
    return {{load_now(rates_at), load_now(rates_at + kWarp)},
            {load_now_or_zero(block_at + min(c, last) * kStates, real),
             load_now_or_zero(block_at + min(c + 1, last) * kStates, real)}};
  }

  // One block of steps of this warp's strip of a tile, up and back.
  template <class FetchNext>
  __device__ __forceinline__ void walk(const float* matrices, int tile, unsigned turn,
                                       const WalkStart& start, FetchNext fetch_next,
                                       float (&db)[2][4], float (&dc)[2][4]) const {
    TeamShared<kStates>& shared = place.team(team);
    const auto& slot = shared.slots[turn % 2];
    Barriers& barriers = place.barriers();
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
    barrier_wait(barriers.full[team][turn % 2], turn / 2 % 2);
    // Of the lane's own step: column g of the sums over channels is to be step g.
    const int own = min(g, kBlockSteps - 1);
    const float2 dy_own = *reinterpret_cast<const float2*>(&slot.terms[own][l].z);
    const float2 delta_u_own = slot.weights[own][l];
#pragma unroll
    for (int t = 0; t < kBlockSteps; ++t) {
      float b[4];
      load_wide(b, matrices + 2 * t * kStates);
      const float part = slot.outer[t][8 * l + g];
      const float2 delta = *reinterpret_cast<const float2*>(&slot.terms[t][l].x);
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

    float4* carried = place.template shared<float4>(SplitLayout<kStates>::carried) +
                      (tile * Cut::strips + strip) * 4 * kWarp + place.lane;
    float q[8], da[8];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 q4 = carried[j * kWarp], da4 = carried[(2 + j) * kWarp];
      q[4 * j] = q4.x, q[4 * j + 1] = q4.y, q[4 * j + 2] = q4.z, q[4 * j + 3] = q4.w;
      da[4 * j] = da4.x, da[4 * j + 1] = da4.y, da[4 * j + 2] = da4.z, da[4 * j + 3] = da4.w;
    }
    // The sums of the tile before.
    barrier_wait(barriers.drained[team][(turn + 1) % 2], ((turn + 1) / 2 + 1) % 2);
    float4* sums_at = shared.sums[strip] + place.lane;
    float b[2][4], c_row[2][4];
    float4 terms[2];  // delta and dy of two channels
    const auto load = [&](int t) {
      load_wide(b[t % 2], matrices + 2 * t * kStates);
      load_wide(c_row[t % 2], matrices + (2 * t + 1) * kStates);
      terms[t % 2] = slot.terms[t][l];
    };
    load(kBlockSteps - 1);
#pragma unroll
    for (int t = kBlockSteps - 1; t >= 0; --t) {
      if (t > 0) load(t - 1);  // ahead of the store that it must not wait for
      if (t == kBlockSteps / 2) fetch_next();
      const float2 weights = {g == t ? delta_u_own.x : 0.0f, g == t ? delta_u_own.y : 0.0f};
      const float delta[2] = {terms[t % 2].x, terms[t % 2].y};
      const float dy[2] = {terms[t % 2].z, terms[t % 2].w};
      float s1[2] = {}, s2[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float gradient[4];
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            gradient[2 * c + r] = fmaf(c_row[t % 2][2 * j + r], dy[c], q[4 * j + 2 * c + r]);
        add_weighted<false>(db[j], gradient, weights);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int e = 4 * j + 2 * c + r;
            const bool first = j == 0 && r == 0;
            s1[c] = first ? b[t % 2][0] * gradient[2 * c]
                          : fmaf(b[t % 2][2 * j + r], gradient[2 * c + r], s1[c]);
            q[e] = gradient[2 * c + r] * decay[t][e];
            const float through = q[e] * h[t][e];
            s2[c] = first ? rate[e] * through : fmaf(rate[e], through, s2[c]);
            da[e] = fmaf(delta[c], through, da[e]);
          }
      }
      store_apart(sums_at + t * Tile::sums, s1[0], s1[1], s2[0], s2[1]);
    }
    warp_arrives(barriers.walked[team], place.lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      carried[j * kWarp] = {q[4 * j], q[4 * j + 1], q[4 * j + 2], q[4 * j + 3]};
      carried[(2 + j) * kWarp] = {da[4 * j], da[4 * j + 1], da[4 * j + 2], da[4 * j + 3]};
    }
  }

  __device__ __forceinline__ void run() const {
    const Part& part = place.where().part;
    const int tiles = ceil_div(part.channels, Tile::channels);
    const int first_block = part.first_block, last_block = part.end_block - 1;
    const std::int64_t stride = static_cast<std::int64_t>(place.where().per_direction) * kStates;
    const T* block_at = saved + last_block * stride;
    WalkStart start;
    if (team < tiles) start = fetch(block_at, last_block > 0, team);
    float db[2][4] = {}, dc[2][4] = {};
    unsigned turn = 0;
#pragma unroll 1
    for (int block = last_block; block >= first_block; --block) {
      const float* matrices = place.matrices(block) + strip * Tile::states + 4 * g;
      const T* next_at = block > first_block ? block_at - stride : block_at;
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams, ++turn) {
        WalkStart next;
        const auto fetch_next = [&] {
          const bool same = tile + Cut::teams < tiles;
          next = fetch(same ? block_at : next_at, block > (same ? 0 : 1),
                       same ? tile + Cut::teams : team);
        };
        walk(matrices, tile, turn, start, fetch_next, db, dc);
        start = next;
      }
      block_at = next_at;
      barrier_wait(place.barriers().matrices_stored, (last_block - block + 1) & 1);
      float4* to = place.gathered(place.warp_index) + place.lane;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[j * kWarp] = {db[j][0], db[j][1], db[j][2], db[j][3]};
        to[(2 + j) * kWarp] = {dc[j][0], dc[j][1], dc[j][2], dc[j][3]};
#pragma unroll
        for (int i = 0; i < 4; ++i) db[j][i] = dc[j][i] = 0;
      }
      __syncthreads();
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
      if (c < part.channels) to[0] = {a.x, a.y}, to[1] = {b.x, b.y};
      if (c + 1 < part.channels) to[kStates / 2] = {a.z, a.w}, to[kStates / 2 + 1] = {b.z, b.w};
    }
  }
};

}  // namespace fm::scan
