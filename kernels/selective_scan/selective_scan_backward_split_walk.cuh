// The walkers of the split backward kernel.
#pragma once

#include "kernels/base/mma.cuh"
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

// A quad in f16, for a step's share of a product: [state], of two channels each.
struct HalfQuad {
  unsigned at[2];
};
__device__ __forceinline__ HalfQuad half_quad(const float (&gradients)[4]) {
  return {
      {narrow_pair<f16>(gradients[0], gradients[2]), narrow_pair<f16>(gradients[1], gradients[3])}};
}
__device__ __forceinline__ HalfQuad half_quad_of_states(const float (&h)[4]) {
  return {{state_pair(h[0], h[2]), state_pair(h[1], h[3])}};
}
// sum += a b with a 16 x 8 and b 8 x 8.
__device__ __forceinline__ void multiply(float (&sum)[4], const HalfQuad& a, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(b));
}
// Two such products at once: of a and b, and of c and d.
__device__ __forceinline__ void multiply(float (&sum)[4], const HalfQuad& a, unsigned b,
                                         const HalfQuad& c, unsigned d) {
  const unsigned both[4] = {a.at[0], a.at[1], c.at[0], c.at[1]};
  multiply_add<f16>(sum, both, b, d);
}

// The way of a tile's steps to dB or dC: weighted sums over its channels, the column of a step
// each.
template <class T, bool kOfStates>
struct ChannelSums {
  float2 own;         // the weights of the lane's two channels at step g,
  unsigned own_in_t;  // and with `scale`
  HalfQuad waiting[2];
  unsigned waiting_weights = 0;

  __device__ __forceinline__ ChannelSums(float2 weights, float scale)
      : own(weights), own_in_t(narrow_pair<T>(scale * weights.x, scale * weights.y)) {}

  // Both quads of step t. `waits`: the other one of steps 2 i and 2 i + 1 is to come. The last step
  // has no other.
  __device__ __forceinline__ void add(float (&sum)[2][4], int t, int g, bool waits,
                                      const float (&quads)[2][4]) {
    if constexpr (kSumsInT<T>) {
      const unsigned weights = g == t ? own_in_t : 0u;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const HalfQuad quad = kOfStates ? half_quad_of_states(quads[j]) : half_quad(quads[j]);
        if (t == kBlockSteps - 1) multiply(sum[j], quad, weights);
        else if (waits) waiting[j] = quad;
        else multiply(sum[j], waiting[j], waiting_weights, quad, weights);
      }
      waiting_weights = weights;
    } else {
      const float2 weights = {g == t ? own.x : 0.0f, g == t ? own.y : 0.0f};
#pragma unroll
      for (int j = 0; j < 2; ++j) add_weighted<false>(sum[j], quads[j], weights);
    }
  }
};

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
  // has of the outer product's B operand.
  const float *terms, *outer;
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
    terms = in_register(&step.terms[l].x);
    outer = in_register(l < 2 ? &step.outer[g / 2].x + 2 * l + g % 2 : &step.zeros[4].x);
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
    asm volatile("" : "+l"(rates), "+l"(saved));  // not taken apart again
  }

  // Of a block and a tile; the states before block 0 are zero. Channels beyond the last read the
  // last one's: their other factors are zero.
  __device__ __forceinline__ WalkStart fetch(int block, int tile) const {
    const Where& where = place.where();
    const auto u = [](int i) { return static_cast<unsigned>(i); };  // an instruction an address
    const float4* rates_at = rates + u(tile) * (Cut::strips * 2 * kWarp);
    const unsigned last = u(where.part.channels - 1), c = u(tile * Tile::channels + 2 * l);
    const T* at = saved + static_cast<std::uint64_t>(u(block)) * u(where.per_direction * kStates);
    return {{load_now(rates_at), load_now(rates_at + kWarp)},
            {load_now_or_zero(at + min(c, last) * kStates, block > 0),
             load_now_or_zero(at + min(c + 1, last) * kStates, block > 0)}};
  }

  // One block of steps of this warp's strip of a tile, up and back. `ready` says whether the tile's
  // slot is known to be full, and then whether the next one's is.
  template <class FetchNext>
  __device__ __forceinline__ void walk(int tile, const float* b_at, const Turn& turn,
                                       unsigned& ready, const WalkStart& start,
                                       FetchNext fetch_next, float (&db)[2][4],
                                       float (&dc)[2][4]) const {
    const int slot = turn.slot * slot_floats;
    float rate[8], h[kBlockSteps + 1][2][4], decay[kBlockSteps][8];
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
          h[0][j][2 * c + r] = saved4[2 * j + r];
        }
    }
    Barriers& barriers = place.barriers();
    if (!ready) barrier_wait(barriers.full[team][turn.slot], turn.parity);
    // Whether the sums of the tile before have been read.
    const Turn before = turn.before();
    unsigned drained = 0;
    // Column g of the sums over channels is to be step g.
    const float* own = terms + slot + min(g, kBlockSteps - 1) * step_floats;
    ChannelSums<T, true> to_dc(*reinterpret_cast<const float2*>(own + 2), 1.0f);
    ChannelSums<T, false> to_db(*reinterpret_cast<const float2*>(own + 16), kDeltaUScale);
#pragma unroll
    for (int t = 0; t < kBlockSteps; ++t) {
      float b[4];
      load_wide(b, b_at + 2 * t * kStates);
      const float part = outer[slot + t * step_floats];
      const float2 delta = *reinterpret_cast<const float2*>(terms + slot + t * step_floats);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float added[4];  // [row][column]
        outer_product<T>(added, b + 2 * j, part);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = 2 * c + r, e = 4 * j + i;
            decay[t][e] = exp2_approx((c ? delta.y : delta.x) * rate[e]);
            h[t + 1][j][i] = fmaf(decay[t][e], h[t][j][i], added[2 * r + c]);
          }
      }
      to_dc.add(dc, t, g, t % 2 == 0, h[t + 1]);
      if (t == 5) drained = barrier_over(barriers.drained[team][before.slot], before.parity);
    }

    // Derived here: a running pointer could not move on before the last tile's stores have read it.
    float4* carried = in_register(place.template shared<float4>(Layout::carried) +
                                  (tile * Cut::strips + strip) * 4 * kWarp + place.lane);
    float q[2][4], da[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_wide(q[j], &carried[j * kWarp].x);
      load_wide(da[j], &carried[(2 + j) * kWarp].x);
    }
    float b[2][4], c_row[2][4];
    float4 term[2];  // delta and dy
    const auto load = [&](int t) {
      load_wide(b[t % 2], b_at + 2 * t * kStates);
      load_wide(c_row[t % 2], b_at + (2 * t + 1) * kStates);
      term[t % 2] = *reinterpret_cast<const float4*>(terms + slot + t * step_floats);
    };
    load(kBlockSteps - 1);
    if (!drained) barrier_wait(barriers.drained[team][before.slot], before.parity);
#pragma unroll
    for (int t = kBlockSteps - 1; t >= 0; --t) {
      if (t > 0) load(t - 1);  // ahead of the store that it must not wait for
      if (t == 5) fetch_next();
      if (t == 1) {
        const Turn after = turn.after();
        ready = barrier_over(barriers.full[team][after.slot], after.parity);
      }
      float s1[2], s2[2], gradient[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            gradient[j][2 * c + r] =
                fmaf(c_row[t % 2][2 * j + r], c ? term[t % 2].w : term[t % 2].z, q[j][2 * c + r]);
      to_db.add(db, t, g, t % 2 == 1, gradient);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = 2 * c + r, e = 4 * j + i;
            const bool first = j == 0 && r == 0;
            s1[c] = first ? b[t % 2][0] * gradient[j][i]
                          : fmaf(b[t % 2][2 * j + r], gradient[j][i], s1[c]);
            q[j][i] = gradient[j][i] * decay[t][e];
            const float through = q[j][i] * h[t][j][i];
            s2[c] = first ? rate[e] * through : fmaf(rate[e], through, s2[c]);
            da[j][i] = fmaf(c ? term[t % 2].y : term[t % 2].x, through, da[j][i]);
          }
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
    unsigned ready = 0;
#pragma unroll 1
    for (int block = last_block; block >= first_block; --block) {
      if (block < last_block) place.barriers().wait_for_staged(last_block - block);
      const float* b_at = in_register(place.matrices(block) + strip * Tile::states + 4 * g);
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams) {
        WalkStart next;
        const auto fetch_next = [&] {
          const bool same = tile + Cut::teams < tiles;
          next = fetch(same ? block : max(block - 1, 0), same ? tile + Cut::teams : team);
        };
        walk(tile, b_at, turn, ready, start, fetch_next, db, dc);
        start = next;
        turn.advance();
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
      if (c < part.channels) to[0] = {a.x, a.y}, to[1] = {b.x, b.y};
      if (c + 1 < part.channels) to[kStates / 2] = {a.z, a.w}, to[kStates / 2 + 1] = {b.z, b.w};
    }
  }
};

}  // namespace fm::scan
