// The preparers and finishers of the split backward kernel.
#pragma once

#include "kernels/selective_scan/selective_scan_backward_split.cuh"

namespace fm::scan {

// Where a lane's two channels of its step are, and how many of them exist.
struct PairAt {
  unsigned row;  // of [B, L]
  unsigned channel;
  int tile, real;
  __device__ std::uint64_t offset(int stride) const {
    return static_cast<std::uint64_t>(row) * static_cast<unsigned>(stride) + channel;
  }
};

// Loads that stay together, so that they are on their way together.
__device__ __forceinline__ float4 load_shared(const float4* from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared_address(from)));
  return v;
}

template <class T, int kStates>
struct Attendant {
  using Tile = BackwardTile<kStates>;
  using Cut = Split<kStates>;
  using Inputs = TileInputs<T, kStates>;
  const SplitPlace<T, kStates>& place;
  int index, team, g, l;
  int channels, tiles;  // of the CTA; no tiles where there is no such team
  unsigned channel;     // the lane's first
  Rows rows;

  __device__ explicit Attendant(const SplitPlace<T, kStates>& at)
      : place(at),
        index((at.warp_index - Cut::walkers) % Cut::attendants),
        team(min(index, Cut::teams - 1)),
        g(static_cast<unsigned>(at.lane) / 4),
        l(static_cast<unsigned>(at.lane) % 4),
        channels(at.where().part.channels),
        tiles(index < Cut::teams ? ceil_div(channels, Tile::channels) : 0),
        channel(at.where().channel + 2 * l),
        rows(at.where().rows) {}

  __device__ __forceinline__ PairAt pair_at(int block, int tile) const {
    const int first = tile * Tile::channels;
    return {static_cast<unsigned>(rows.at(block * kBlockSteps + g)), channel + first, tile,
            g < place.steps(block) ? channels - first - 2 * l : 0};
  }

  __device__ __forceinline__ void fetch(const PairAt& at, Inputs& to) const {
    const BackwardArgs<T>& args = place.args;
    const ScanInputs<T>& in = args.p.in;
    const std::uint64_t dense = at.offset(args.p.shape.channels);
    const T* from[5] = {in.u + at.offset(args.u_stride), in.dt + at.offset(args.dt_stride),
                        in.z + at.offset(args.z_stride), args.p.y + dense, args.p.d_o + dense};
    Pair<T>* pairs[5] = {&to.u[0], &to.dt[0], &to.z[0], &to.y[0], &to.d_o[0]};
    if (args.pairs) {
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        pairs[i]->word = 0;
        if (at.real > 0) pairs[i]->word = *reinterpret_cast<const unsigned*>(from[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        Vec<T, 2> v{};
        if (at.real > 0) v.at[0] = from[i][0];
        if (at.real > 1) v.at[1] = from[i][1];
        pairs[i]->word = *reinterpret_cast<unsigned*>(&v);
      }
    }
  }

  // Inputs to what the walk and finish() multiply with; stores dz. Steps and channels beyond the
  // shape become zero: they change neither q nor any sum.
  __device__ __forceinline__ void prepare(const PairAt& at, unsigned turn, const Inputs& in) const {
    barrier_wait(place.barriers().drained[team][turn % 2], (turn / 2 + 1) % 2);
    if (g < kBlockSteps) {
      auto& slot = place.team(team).slots[turn % 2];
      const int local = at.tile * Tile::channels + 2 * l;
      const float2 bias = *place.template shared<const float2>(place.layout().bias + local * 4);
      const float2 us = in.u[0].values(), dts = in.dt[0].values(), zs = in.z[0].values(),
                   ys = in.y[0].values(), gs = in.d_o[0].values();
      float delta[2], slope[2], dy[2], dz[2], delta_u[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float z = c ? zs.y : zs.x, d_o = c ? gs.y : gs.x;
        const float gate = sigmoid_approx(z);
        const float2 both = softplus_and_slope<T>((c ? dts.y : dts.x) + (c ? bias.y : bias.x));
        delta[c] = c < at.real ? both.x : 0.0f;
        slope[c] = c < at.real ? both.y : 0.0f;
        delta_u[c] = delta[c] * (c ? us.y : us.x);
        dy[c] = d_o * z * gate;
        dz[c] = d_o * (c ? ys.y : ys.x) * gate * (1.0f + z * (1.0f - gate));
      }
      // The multiplication takes the first 10 bits of fraction and drops the others.
      float* outer = &slot.outer[g][2 * l];
      *reinterpret_cast<float2*>(outer) = {delta_u[0], delta_u[1]};
      *reinterpret_cast<float2*>(outer + 8) = {delta_u[0] - tf32_cut(delta_u[0]),
                                               delta_u[1] - tf32_cut(delta_u[1])};
      slot.terms[g][l] = {delta[0], delta[1], dy[0], dy[1]};
      slot.finish[g][l] = {us.x, us.y, slope[0], slope[1]};
      slot.weights[g][l] = {delta_u[0], delta_u[1]};
      store_pair(place.args.p.dz + at.offset(place.args.z_stride), dz[0], dz[1], at.real,
                 place.args.pairs);
    }
    warp_arrives(place.barriers().full[team][turn % 2], place.lane);
  }

  // From the sums over states to du and ddt.
  __device__ __forceinline__ void finish(const PairAt& at, unsigned turn) const {
    barrier_wait(place.barriers().walked[team], turn % 2);
    const TeamShared<kStates>& from = place.team(team);
    const auto& slot = from.slots[turn % 2];
    const int step = min(g, kBlockSteps - 1);
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8 * Cut::strips; i += 4) {
      float4 more[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        more[k] = load_shared(&from.sums[(i + k) / 8][step * Tile::sums + 4 * ((i + k) % 8) + l]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum.x += more[k].x;
        sum.y += more[k].y;
        sum.z += more[k].z;
        sum.w += more[k].w;
      }
    }
    const float4 term = load_shared(&slot.terms[step][l]), end = load_shared(&slot.finish[step][l]);
    warp_arrives(place.barriers().drained[team][turn % 2], place.lane);
    if (g >= kBlockSteps) return;
    const int local = at.tile * Tile::channels + 2 * l;
    const float2 skip = *place.template shared<const float2>(place.layout().skip + local * 4);
    const std::uint64_t offset = at.offset(place.args.p.shape.channels);
    const float ddt[2] = {(end.x * sum.x + kLn2 * sum.z) * end.z,
                          (end.y * sum.y + kLn2 * sum.w) * end.w};
    store_pair(place.args.p.du + offset, term.x * sum.x + skip.x * term.z,
               term.y * sum.y + skip.y * term.w, at.real, place.args.pairs);
    store_pair(place.args.p.ddt + offset, ddt[0], ddt[1], at.real, place.args.pairs);
    float4& parameters =
        place.template shared<float4>(place.layout().parameters)[at.tile * Cut::lanes + place.lane];
    float4 total = parameters;
    total.x += ddt[0];
    total.y += ddt[1];
    total.z += term.z * end.x;
    total.w += term.w * end.y;
    parameters = total;
  }

  // B and C of a block, two neighbouring states a lane.
  __device__ __forceinline__ void stage(int block) const {
    const ScanInputs<T>& in = place.args.p.in;
    const int count = place.steps(block), state = place.args.p.shape.state;
    const std::int64_t direction = place.where().part.direction * in.bc_direction;
    float* to = place.matrices(block) + 2 * place.lane;
#pragma unroll
    for (int k = 0; k < ceil_div(2 * kBlockSteps, Cut::attendants); ++k) {
      const int row = k * Cut::attendants + index, t = row / 2;
      if (row >= 2 * kBlockSteps) break;
      const T* from = (row % 2 ? in.c : in.b) + rows.at(block * kBlockSteps + t) * in.bc_stride +
                      direction + 2 * place.lane;
#pragma unroll
      for (int n = 0; n < kStates; n += 2 * kWarp) {
        const int left = t < count ? state - n - 2 * place.lane : 0;
        *reinterpret_cast<float2*>(to + row * kStates + n) = {left > 0 ? widen(from[n]) : 0.0f,
                                                              left > 1 ? widen(from[n + 1]) : 0.0f};
      }
    }
  }

  // Sums what the walkers have gathered: dB and dC themselves where the CTA has all channels of the
  // direction, else its share of them. Both factors of every product were cut to tf32.
  __device__ __forceinline__ void store_matrices(int block) const {
    constexpr float scale = kTf32Cut * kTf32Cut;
    const BackwardArgs<T>& args = place.args;
    const ScanShape& s = args.p.shape;
    const Where& where = place.where();
    const int count = place.steps(block);
#pragma unroll 1
    for (int i = index * kWarp + place.lane; i < Cut::strips * 4 * kWarp;
         i += Cut::attendants * kWarp) {
      const int lane = i % kWarp, row = i / kWarp % 2, matrix = i / kWarp / 2 % 2;
      const int strip = i / kWarp / 4;
      float4 sum = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < Cut::teams; ++k) {
        const float4 more = place.gathered(k * Cut::strips + strip)[i % (4 * kWarp)];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
      }
      const int n = strip * Tile::states + Tile::state_of(lane / 4, row);
      const float values[2][2] = {{sum.x * scale, sum.z * scale},
                                  {sum.y * scale, sum.w * scale}};  // [step][state]
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int t = lane % 4 * 2 + k;
        if (t >= count) continue;
        const std::int64_t at = where.rows.at(block * kBlockSteps + t);
        if (args.channel_blocks == 1) {
          T* to = (matrix ? args.p.dc : args.p.db) + at * args.p.in.bc_stride +
                  where.part.direction * args.p.in.bc_direction + n;
          store_pair(to, values[k][0], values[k][1], s.state - n, args.matrix_pairs);
        } else {
          const std::int64_t tokens = static_cast<std::int64_t>(s.batch) * s.length;
          const std::int64_t share = where.part.first / args.block_channels;
          const std::int64_t group = (share * tokens + at) * s.directions + where.part.direction;
          float* to = args.matrices + (group * 2 + matrix) * s.state + n;
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (n + r < s.state) to[r] = values[k][r];
        }
      }
    }
    warp_arrives(place.barriers().matrices_stored, place.lane);
  }

  // The inputs of a tile are fetched while the one before is prepared.
  __device__ __forceinline__ void run_preparer() const {
    const Part& part = place.where().part;
    const int first_block = part.first_block, last_block = part.end_block - 1;
    int block_at = last_block, tile_at = team;  // of the tile that was fetched last
    unsigned turn = 0;
    Inputs inputs;
    PairAt at = pair_at(block_at, tile_at);
    const auto advance = [&] {
      tile_at += Cut::teams;
      if (tile_at >= tiles) tile_at = team, --block_at;
      at = pair_at(block_at, tile_at);
      if (block_at >= first_block) fetch(at, inputs);
    };
    const auto prepare_one = [&] {
      if (block_at < first_block) return;
      prepare(at, turn++, inputs);
      advance();
    };
    if (team < tiles) {
      fetch(at, inputs);
      prepare_one();
    }
#pragma unroll 1
    for (int block = last_block; block >= first_block; --block) {
      if (block > first_block) stage(block - 1);
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams) prepare_one();
      __syncthreads();
    }
  }

  __device__ __forceinline__ void run_finisher() const {
    const Part& part = place.where().part;
    unsigned turn = 0;
#pragma unroll 1
    for (int block = part.end_block - 1; block >= part.first_block; --block) {
      if (team >= tiles) __syncthreads();
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams, ++turn) {
        if (tile + Cut::teams >= tiles) __syncthreads();  // the walkers go on, this has time
        finish(pair_at(block, tile), turn);
      }
      store_matrices(block);
    }

    // dD and dbias of this team's channels.
    float* out = place.args.parameters +
                 (static_cast<std::int64_t>(part.image) * place.args.chunks + part.chunk) *
                     place.args.p.shape.channels * (kStates + 2) +
                 static_cast<std::int64_t>(place.args.p.shape.channels) * kStates +
                 place.where().channel;
    __syncwarp();
    for (int tile = team; tile < tiles; tile += Cut::teams) {
      const float4* from =
          place.template shared<const float4>(place.layout().parameters) + tile * Cut::lanes;
      if (place.lane >= Tile::channels) continue;
      const int c = tile * Tile::channels + place.lane;
      float dbias = 0, skip = 0;
      for (int t = 0; t < kBlockSteps; ++t) {
        const float* at = &from[4 * t + place.lane / 2].x + place.lane % 2;
        dbias += at[0];
        skip += at[2];
      }
      if (c >= part.channels) continue;
      out[c] = skip;
      out[place.args.p.shape.channels + c] = dbias;
    }
  }
};

}  // namespace fm::scan
