// The preparers and finishers of the split backward kernel.
#pragma once

#include "kernels/selective_scan/selective_scan_backward_split.cuh"

namespace fm::scan {

// Loads that stay together, so that they are on their way together.
__device__ __forceinline__ float4 load_shared(const float4* from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared_address(from)));
  return v;
}

// Into the level 2 cache.
__device__ __forceinline__ void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Two neighbouring channels; `real` says how many exist, kPairs that both can be moved at once.
template <class T, bool kPairs>
__device__ __forceinline__ void load_channels(unsigned& to, const T* from, int real, T absent) {
  Vec<T, 2> v = {absent, absent};
  if constexpr (kPairs) {
    to = *reinterpret_cast<unsigned*>(&v);
    if (real > 0) to = *reinterpret_cast<const unsigned*>(from);
  } else {
    if (real > 0) v.at[0] = from[0];
    if (real > 1) v.at[1] = from[1];
    to = *reinterpret_cast<unsigned*>(&v);
  }
}

// A preparer or finisher. Lane (g, l) has step g of channels 2 l and 2 l + 1 of its team's tiles.
// What is the same for all tiles is derived once, and a tile is a column of rows: addresses would
// else be half of the work. kPairs: two neighbouring channels can be moved at once; kGate:
// there is a gate, else d_o is dy.
template <class T, int kStates, bool kPairs, bool kGate>
struct Attendant {
  using Tile = BackwardTile<kStates>;
  using Cut = Split<kStates>;
  using Step = typename TeamShared<kStates>::Step;
  static constexpr int stride = Cut::teams * Tile::channels;  // from tile to tile of a team
  const SplitPlace<T, kStates>& place;
  int index, team, g, l;
  int channels, tiles;  // of the CTA; no tiles where there is no such team
  unsigned channel;     // the lane's first of its team's first tile
  Rows rows;
  Step* steps;              // the lane's in the team's first slot, at its two channels
  std::uint64_t* barriers;  // the team's `full`

  __device__ explicit Attendant(const SplitPlace<T, kStates>& at)
      : place(at),
        index((at.warp_index - Cut::walkers) % Cut::attendants),
        team(min(index, Cut::teams - 1)),
        g(static_cast<unsigned>(at.lane) / 4),
        l(static_cast<unsigned>(at.lane) % 4),
        channels(at.where().part.channels),
        tiles(index < Cut::teams ? ceil_div(channels, Tile::channels) : 0),
        channel(at.where().channel + team * Tile::channels + 2 * l),
        rows(at.where().rows),
        steps(in_register(reinterpret_cast<Step*>(
            &at.team(team).slots[0].steps[min(g, kBlockSteps - 1)].terms[l]))),
        barriers(in_register(at.barriers().full[team])) {}

  // The lane's row of a block in an array, at its team's first tile.
  template <class U>
  __device__ __forceinline__ U* row_of(U* array, int block, int row_stride) const {
    const auto row = static_cast<unsigned>(rows.at(block * kBlockSteps + g));
    return array + (static_cast<std::uint64_t>(row) * static_cast<unsigned>(row_stride) + channel);
  }
  // How many of the lane's channels are left from its team's first tile on.
  __device__ __forceinline__ int left_of(int block) const {
    return g < place.steps(block) ? channels - team * Tile::channels - 2 * l : 0;
  }
  __device__ __forceinline__ Step* step_of(const Turn& turn) const {
    return steps + turn.slot * kBlockSteps;
  }
  __device__ __forceinline__ std::uint64_t& full(const Turn& turn) const {
    return barriers[turn.slot];
  }
  __device__ __forceinline__ std::uint64_t& drained(const Turn& turn) const {
    return barriers[Barriers::drained_at + turn.slot];
  }

  // The inputs of a tile on their way, and where they come from: rows of a block, and a column.
  struct Inputs {
    const T *u_at, *dt_at, *z_at, *y_at, *d_o_at;
    T* dz_at;
    int column, left;
    unsigned u, dt, z, y, d_o;
  };

  __device__ __forceinline__ void start(int block, Inputs& in) const {
    const BackwardArgs<T>& args = place.args;
    const int dense = args.p.shape.channels;
    in.column = 0;
    in.left = left_of(block);
    in.u_at = row_of(args.p.in.u, block, args.u_stride);
    in.dt_at = row_of(args.p.in.dt, block, args.dt_stride);
    if constexpr (kGate) {
      in.z_at = row_of(args.p.in.z, block, args.z_stride);
      in.dz_at = row_of(args.p.dz, block, args.z_stride);
      in.y_at = row_of(args.p.y, block, dense);
    }
    in.d_o_at = row_of(args.p.d_o, block, dense);
  }
  // A dt of minus infinity makes delta and its slope zero: steps and channels beyond the shape
  // change neither q nor any sum.
  __device__ __forceinline__ void fetch(Inputs& in) const {
    const T zero = narrow<T>(0.0f);
    const int real = in.left - in.column;
    load_channels<T, kPairs>(in.u, in.u_at + in.column, real, zero);
    load_channels<T, kPairs>(in.dt, in.dt_at + in.column, real, narrow<T>(-INFINITY));
    if constexpr (kGate) {
      load_channels<T, kPairs>(in.z, in.z_at + in.column, real, zero);
      load_channels<T, kPairs>(in.y, in.y_at + in.column, real, zero);
    }
    load_channels<T, kPairs>(in.d_o, in.d_o_at + in.column, real, zero);
  }

  // Inputs to what the walk and finish() multiply with; stores dz, if there is a gate. `biases` are
  // of the first tile.
  __device__ __forceinline__ void prepare(const Turn& turn, const Inputs& in,
                                          const float* biases) const {
    barrier_wait(drained(turn), turn.parity ^ 1);
    if (g < kBlockSteps) {
      const float2 us = widen_pair<T>(in.u), dts = widen_pair<T>(in.dt), gs = widen_pair<T>(in.d_o);
      const float2 bias = *reinterpret_cast<const float2*>(biases + in.column);
      float delta[2], slope[2], dy[2] = {gs.x, gs.y}, delta_u[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 both = softplus_and_slope<T>((c ? dts.y : dts.x) + (c ? bias.y : bias.x));
        delta[c] = both.x;
        slope[c] = both.y;
        delta_u[c] = delta[c] * (c ? us.y : us.x);
      }
      if constexpr (kGate) {
        const float2 zs = widen_pair<T>(in.z), ys = widen_pair<T>(in.y);
        float dz[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float z = c ? zs.y : zs.x, gate = sigmoid_approx(z);
          dz[c] = dy[c] * (c ? ys.y : ys.x) * gate * (1.0f + z * (1.0f - gate));
          dy[c] *= z * gate;
        }
        store_pair(in.dz_at + in.column, dz[0], dz[1], in.left - in.column, kPairs);
      }
      Step& to = *step_of(turn);
      to.terms[0] = {delta[0], delta[1], dy[0], dy[1]};
      // The multiplication takes the first 10 bits of fraction and drops the others.
      to.outer[0] = {delta_u[0], delta_u[1], delta_u[0] - tf32_cut(delta_u[0]),
                     delta_u[1] - tf32_cut(delta_u[1])};
      to.finish[0] = {us.x, us.y, slope[0], slope[1]};
    }
    arrive(full(turn));
  }

  // From the sums over states to du and ddt. `skips` and `parameters` are of the first tile.
  struct Outputs {
    T *du_at, *ddt_at;
    int column, left;
  };
  __device__ __forceinline__ void finish(const Turn& turn, unsigned parity, std::uint64_t& walked,
                                         const float4* sums, const Outputs& out, const float* skips,
                                         float4* parameters) const {
    barrier_wait(walked, parity);
    float4 sum;
#pragma unroll
    for (int i = 0; i < 8 * Cut::strips; i += 4) {
      float4 more[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        more[k] = load_shared(sums + (i + k) / 8 * (kBlockSteps * Tile::sums) + (i + k) % 8 * 4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (i + k == 0) sum = more[0];
        else sum = {sum.x + more[k].x, sum.y + more[k].y, sum.z + more[k].z, sum.w + more[k].w};
      }
    }
    const Step& step = *step_of(turn);
    const float4 term = load_shared(&step.terms[0]), end = load_shared(&step.finish[0]);
    arrive(drained(turn));
    if (g >= kBlockSteps) return;
    const float2 skip = *reinterpret_cast<const float2*>(skips + out.column);
    const float ddt[2] = {(end.x * sum.x + kLn2 * sum.z) * end.z,
                          (end.y * sum.y + kLn2 * sum.w) * end.w};
    const int real = out.left - out.column;
    store_pair(out.du_at + out.column, term.x * sum.x + skip.x * term.z,
               term.y * sum.y + skip.y * term.w, real, kPairs);
    store_pair(out.ddt_at + out.column, ddt[0], ddt[1], real, kPairs);
    float4& parameter = parameters[out.column / Tile::channels * Cut::lanes];
    float4 total = parameter;
    total.x += ddt[0];
    total.y += ddt[1];
    total.z += term.z * end.x;
    total.w += term.w * end.y;
    parameter = total;
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
  // direction, else its share of them.
  __device__ __forceinline__ void store_matrices(int block) const {
    const BackwardArgs<T>& args = place.args;
    const ScanShape& s = args.p.shape;
    const Where& where = place.where();
    const int count = place.steps(block);
#pragma unroll 1
    for (int i = index * kWarp + place.lane; i < Cut::strips * 4 * kWarp;
         i += Cut::attendants * kWarp) {
      const int lane = i % kWarp, row = i / kWarp % 2, matrix = i / kWarp / 2 % 2;
      const int strip = i / kWarp / 4;
      const float scale = matrix ? kScaleOfC<T> : kScaleOfB<T>;
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
    arrive(place.barriers().matrices_stored);
  }

  // The inputs of a tile are fetched while the one before is prepared.
  __device__ __forceinline__ void run_preparer() const {
    const Part& part = place.where().part;
    const int first_block = part.first_block, last_block = part.end_block - 1;
    const float* biases = in_register(place.template shared<const float>(place.layout().bias) +
                                      team * Tile::channels + 2 * l);
    const int end = channels - team * Tile::channels;  // of columns
    int block_at = last_block;                         // of the tile that was fetched last
    Turn turn;
    Inputs in;
    const auto prepare_one = [&] {
      if (block_at < first_block) return;
      prepare(turn, in, biases);
      turn.advance();
      in.column += stride;
      if (in.column >= end && --block_at >= first_block) start(block_at, in);
      if (block_at >= first_block) fetch(in);
    };
    if (team < tiles) {
      start(block_at, in);
      fetch(in);
    }
    // B and C of the next block are staged when those of the block before are no more needed, which
    // is so, or nearly, once slots have been used again.
    const int count = ceil_div(tiles - team, Cut::teams);
    Barriers& all = place.barriers();
#pragma unroll 1
    for (int i = 0; i <= last_block - first_block; ++i) {
      const int stage_at = min(static_cast<int>(kSlots), count - 1);
#pragma unroll 1
      for (int k = 0; k <= stage_at; ++k) prepare_one();
      if (i < last_block - first_block) {
        if (i > 0) all.wait_for_gathered(i - 1);
        stage(last_block - i - 1);
        arrive(all.staged[(i + 1) & 1]);
      }
#pragma unroll 1
      for (int k = stage_at + 1; k < count; ++k) prepare_one();
    }
  }

  // The saved states of this team's tiles, a line a lane: walkers would else wait for them.
  __device__ __forceinline__ void prefetch_states(int block) const {
    constexpr int line = 128 / sizeof(T), lines = Tile::channels * kStates / line;  // of a tile
    const Where& where = place.where();
    const T* states = static_cast<const T*>(place.args.p.states) +
                      ((where.part.image_direction * where.blocks + block) * where.per_direction +
                       where.part.first) *
                          kStates;
#pragma unroll 1
    for (int i = place.lane;; i += kWarp) {
      const int c = i / lines * stride + team * Tile::channels, at = c * kStates + i % lines * line;
      if (at >= channels * kStates) break;
      prefetch(states + at);
    }
  }

  __device__ __forceinline__ void run_finisher() const {
    const Part& part = place.where().part;
    const int dense = place.args.p.shape.channels;
    const float4* sums =
        in_register(&place.team(team).sums[0][min(g, kBlockSteps - 1) * Tile::sums + l]);
    const float* skips = in_register(place.template shared<const float>(place.layout().skip) +
                                     team * Tile::channels + 2 * l);
    float4* parameters = in_register(place.template shared<float4>(place.layout().parameters) +
                                     team * Cut::lanes + place.lane);
    std::uint64_t& walked = *in_register(&place.barriers().walked[team]);
    Turn turn;
    unsigned parity = 0;
#pragma unroll 1
    for (int block = part.end_block - 1; block >= part.first_block; --block) {
      if (tiles > 0 && block > max(part.first_block, 1)) prefetch_states(block - 1);
      Outputs out = {row_of(place.args.p.du, block, dense), row_of(place.args.p.ddt, block, dense),
                     0, left_of(block)};
#pragma unroll 1
      for (int tile = team; tile < tiles; tile += Cut::teams) {
        finish(turn, parity, walked, sums, out, skips, parameters);
        turn.advance();
        parity ^= 1;
        out.column += stride;
      }
      place.barriers().wait_for_gathered(part.end_block - 1 - block);
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
