// The backward kernel of the selective scan around its main loop: how a CTA's warps and shared
// memory are cut, and what happens to a tile of channels before and after its states are walked.
#pragma once

#include "kernels/selective_scan/selective_scan.cuh"

namespace fm::scan {

// The tensor cores cut operands to the 10 bits of fraction of tf32: 2^-11.5 off on average.
constexpr float kTf32Cut = 1.000352f;

// A warp walks one block of steps of one tile at a time: 8 channels x 32 states, or 16 x 16 where
// there are no more. Lane (g, l) = (lane / 4, lane % 4) has 8 elements of it, as two quads that are
// A operands of mma.m16n8k8: rows (g, g + 8) are states, columns (l, l + 4) channels.
template <int kStates>
struct BackwardTile {
  static constexpr int states = kStates >= 32 ? 32 : 16;
  static constexpr int strips = kStates >= 32 ? kStates / 32 : 1;  // tiles that cover the states
  static constexpr int padded = states * strips;
  static constexpr int wide = kStates >= 32 ? 4 : 2;  // neighbouring states of a lane
  static constexpr int elements = 8 * kWarp;
  static constexpr int groups = 32 / states;  // of 8 channels
  static constexpr int channels = 8 * groups;
  static constexpr int rows = 2 / groups;  // of quads
  static constexpr int max_warps = 8;      // of 255 registers fill an SM
  static constexpr int sums = 36;          // fours a step: 4 pad them off each other's banks

  // Of element 4 quad + 2 column + row: its state within the strip and its channel in the tile.
  __device__ static constexpr int state_of(int g, int quad) {
    return groups == 1 ? 4 * g + 2 * quad : 2 * g;
  }
  __device__ static constexpr int channel_of(int l, int quad) {
    return groups == 1 ? 2 * l : 8 * quad + 2 * l;
  }
};

// What the CTA works on. It stands in shared memory: the main loop needs the registers.
struct alignas(16) Where {
  Part part;
  Rows rows;
  int channel;  // first channel of the CTA, counted over all directions
  int per_direction, blocks;
};

// A warp's own shared memory.
template <class T, int kStates>
struct alignas(16) WarpShared {
  using Tile = BackwardTile<kStates>;
  static constexpr int groups = Tile::groups;
  union {
    // Over states: {g B of two channels, A q h of two channels} of a lane.
    float4 sums[groups][kBlockSteps * Tile::sums];
    // dB and dC of a block, as the lanes hold them: columns are steps.
    float4 gathered[Tile::strips][2][Tile::rows][kWarp];
  };
  float4 terms[kBlockSteps][groups][4];    // delta and dy of two channels
  float4 finish[kBlockSteps][groups][4];   // u and softplus' of two channels
  float outer[kBlockSteps][groups][4][8];  // delta u in two parts, B operand of the outer product
  // Weights of a sum over channels, B operand with only the column of its step not zero: lane
  // (g, l) reads entry 7 g + t for step t and so meets what it has written to 8 g for t = g.
  float2 weights[groups][8 * kBlockSteps + 1][4];
  // Decay rates and saved states on their way to each lane.
  Vec<float, Tile::wide> rates[8 / Tile::wide][kWarp];
  Vec<T, Tile::wide> saved[8 / Tile::wide][kWarp];
};

// Per-CTA shared memory, in bytes from its start.
template <class T, int kStates>
struct BackwardLayout {
  using Tile = BackwardTile<kStates>;
  static constexpr int where = 0;
  // B and C: [steps][2][states] float, and as they arrive: [2][steps][states] T.
  static constexpr int matrices = sizeof(Where);
  static constexpr int raw_matrices = matrices + 2 * kBlockSteps * Tile::padded * 4;
  static constexpr int warps = raw_matrices + 2 * kBlockSteps * kStates * int(sizeof(T));
  int q;  // and dA: [tile][strip][quad][lane] float4
  int da;
  int parameters;  // [tile][group][lane] float4: sums of dbias and of dD, two channels each
  int bias;        // and D: [channels] float
  int skip;
  int bytes;

  __host__ __device__ BackwardLayout(int warp_count, int channels) {
    q = warps + warp_count * int(sizeof(WarpShared<T, kStates>));
    da = q + channels * Tile::padded * 4;
    parameters = da + channels * Tile::padded * 4;
    bias = parameters + channels / 8 * kWarp * 16;
    skip = bias + channels * 4;
    bytes = skip + channels * 4;
  }
};

template <class T>
struct BackwardArgs {
  ScanBackward<T> p;
  int chunks, block_channels, channel_blocks;
  const float* q;      // gradients that enter the chunks at their ends; null: zero
  const float* rates;  // A log2(e), [direction][tile][strip] in rates_kernel's order
  float* parameters;   // [image, chunk][channels (padded state + 2)]: dA, then dD, then dbias
  float* matrices;     // dB and dC of each channel block: [block][B L directions][2][state]
  int u_stride, dt_stride, z_stride;
  bool pairs, wide_states;
  bool matrix_pairs;  // rows of dB and dC: two neighbouring states can be stored at once
};

// What the phases below share.
template <class T, int kStates>
struct Place {
  const BackwardArgs<T>& args;
  unsigned char* memory;
  int lane, warp_index;

  template <class U>
  __device__ U* shared(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ const Where& where() const {
    return *shared<const Where>(BackwardLayout<T, kStates>::where);
  }
  __device__ BackwardLayout<T, kStates> at() const {
    return BackwardLayout<T, kStates>(blockDim.x / kWarp, args.block_channels);
  }
  __device__ WarpShared<T, kStates>& warp() const {
    return shared<WarpShared<T, kStates>>(BackwardLayout<T, kStates>::warps)[warp_index];
  }
  __device__ int steps(int block) const {
    return min(kBlockSteps, args.p.shape.length - block * kBlockSteps);
  }
};

// Two neighbouring channels of a row, moved as one word where all rows allow it.
template <class T>
struct Pair {
  using Word = std::conditional_t<sizeof(T) == 2, unsigned, uint2>;
  Word word;
  __device__ float2 values() const {
    const auto v = *reinterpret_cast<const Vec<T, 2>*>(&word);
    return {widen(v.at[0]), widen(v.at[1])};
  }
};

// The inputs of a tile on their way: lane (g, l) has step g of channels 2 l and 2 l + 1.
template <class T, int kStates>
struct TileInputs {
  static constexpr int groups = BackwardTile<kStates>::groups;
  Pair<T> u[groups], dt[groups], z[groups], y[groups], d_o[groups];
};

// Where a lane's two channels of its step are: element offsets of rows, and how many of them exist.
struct PairPlace {
  unsigned row;  // of [B, L]
  int channel, real;
};
template <class T, int kStates>
__device__ __forceinline__ PairPlace pair_place(const Place<T, kStates>& place, int block,
                                                int local) {
  const int g = place.lane / 4;
  const Where& where = place.where();
  const int real = g < place.steps(block) ? max(0, min(2, where.part.channels - local)) : 0;
  return {static_cast<unsigned>(where.rows.at(block * kBlockSteps + g)), where.channel + local,
          real};
}
__device__ __forceinline__ std::int64_t offset_of(const PairPlace& at, int stride) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(at.row) *
                                   static_cast<unsigned>(stride)) +
         at.channel;
}

template <class T, int kStates>
__device__ __forceinline__ void fetch_inputs(const Place<T, kStates>& place, int block, int base,
                                             TileInputs<T, kStates>& to) {
  const BackwardArgs<T>& args = place.args;
  const ScanInputs<T>& in = args.p.in;
#pragma unroll
  for (int group = 0; group < BackwardTile<kStates>::groups; ++group) {
    const PairPlace at = pair_place(place, block, base + 8 * group + place.lane % 4 * 2);
    const T* from[5] = {in.u + offset_of(at, args.u_stride), in.dt + offset_of(at, args.dt_stride),
                        args.p.d_o + offset_of(at, args.p.shape.channels),
                        in.z + offset_of(at, args.z_stride),
                        args.p.y + offset_of(at, args.p.shape.channels)};
    Pair<T>* pairs[5] = {&to.u[group], &to.dt[group], &to.d_o[group], &to.z[group], &to.y[group]};
    const int arrays = in.z ? 5 : 3;
    if (args.pairs) {
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        pairs[i]->word = {};
        if (i < arrays && at.real > 0)
          pairs[i]->word = *reinterpret_cast<const typename Pair<T>::Word*>(from[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        Vec<T, 2> v{};
        if (i < arrays && at.real > 0) v.at[0] = from[i][0];
        if (i < arrays && at.real > 1) v.at[1] = from[i][1];
        pairs[i]->word = *reinterpret_cast<typename Pair<T>::Word*>(&v);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void store_pair(T* to, float a, float b, int real, bool pairs) {
  const Vec<T, 2> v = {narrow<T>(a), narrow<T>(b)};
  if (pairs) {
    if (real > 0) *reinterpret_cast<Vec<T, 2>*>(to) = v;
  } else {
    if (real > 0) to[0] = v.at[0];
    if (real > 1) to[1] = v.at[1];
  }
}

// Starts the copies of a lane's saved states and decay rates: it alone will read them, so there is
// no barrier between copy and use. Channels beyond the last read the last one's: their other
// factors are zero.
template <class T, int kStates>
__device__ __forceinline__ void fetch_start(const Place<T, kStates>& place, int block, int base,
                                            int strip) {
  using Tile = BackwardTile<kStates>;
  constexpr int wide = Tile::wide;
  const BackwardArgs<T>& args = place.args;
  const Where& where = place.where();
  WarpShared<T, kStates>& warp = place.warp();
  const int n = strip * Tile::states + wide * (place.lane / 4);
  if (n >= kStates) return;
  const T* states = static_cast<const T*>(args.p.states) +
                    ((where.part.image_direction * where.blocks + block) * where.per_direction +
                     where.part.first) *
                        kStates +
                    n;
  const int tiles = ceil_div(where.per_direction, Tile::channels);
  const std::int64_t tile =
      where.part.direction * tiles + (where.part.first + base) / Tile::channels;
  const float* rates =
      args.rates + (tile * Tile::strips + strip) * Tile::elements + place.lane * wide;
#pragma unroll
  for (int i = 0; i < 8 / wide; ++i) {
    const int c =
        min(base + Tile::channel_of(place.lane % 4, i / 2) + i % 2, where.part.channels - 1);
    copy_async<wide * sizeof(float)>(&warp.rates[i][place.lane], rates + i * kWarp * wide);
    copy_async_or_zero<wide * sizeof(T)>(&warp.saved[i][place.lane], states + c * kStates,
                                         block > 0);
  }
}

__device__ __forceinline__ float tf32_cut(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}

// softplus(x) and its slope. For 16-bit types: 1e-5 of the value, from one exp and one logarithm.
template <class T>
__device__ __forceinline__ float2 softplus_and_slope(float x) {
  if constexpr (std::is_same_v<T, float>) {
    const float delta = softplus(x);
    return {delta, -expm1f(-delta)};
  } else {
    const float e = exp2_approx(kLog2e * x);
    const float small = e * (1.0f - e * (0.5f - e * (1.0f / 3)));
    const float delta = e < 0.015625f ? small : __logf(1.0f + e);
    return x > 20.0f ? float2{x, 1.0f} : float2{delta, __fdividef(e, 1.0f + e)};
  }
}

// Inputs to what the walk and finish_tile multiply with; stores dz, if there is a gate. Steps and
// channels beyond the shape become zero: they change neither q nor any sum.
template <class T, int kStates>
__device__ __forceinline__ void prepare_tile(const Place<T, kStates>& place, int block, int base,
                                             const TileInputs<T, kStates>& in) {
  const BackwardArgs<T>& args = place.args;
  WarpShared<T, kStates>& to = place.warp();
  const int g = place.lane / 4, l = place.lane % 4;
  if (g >= kBlockSteps) return;
  const float* bias = place.template shared<float>(place.at().bias);
#pragma unroll
  for (int group = 0; group < BackwardTile<kStates>::groups; ++group) {
    const int local = base + 8 * group + 2 * l;
    const PairPlace at = pair_place(place, block, local);
    const float2 us = in.u[group].values(), dts = in.dt[group].values(), zs = in.z[group].values(),
                 ys = in.y[group].values(), gs = in.d_o[group].values();
    float delta[2], slope[2], dy[2] = {gs.x, gs.y}, high[2], low[2];
    if (args.p.in.z) {
      float dz[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float z = c ? zs.y : zs.x, gate = sigmoid_approx(z);
        dz[c] = dy[c] * (c ? ys.y : ys.x) * gate * (1.0f + z * (1.0f - gate));
        dy[c] *= z * gate;
      }
      store_pair(args.p.dz + offset_of(at, args.z_stride), dz[0], dz[1], at.real, args.pairs);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float2 both = softplus_and_slope<T>((c ? dts.y : dts.x) + bias[local + c]);
      delta[c] = c < at.real ? both.x : 0.0f;
      slope[c] = c < at.real ? both.y : 0.0f;
      const float delta_u = delta[c] * (c ? us.y : us.x);
      high[c] = tf32_cut(delta_u);
      low[c] = delta_u - high[c];
    }
    const auto part = [&](int k) {
      return reinterpret_cast<float2*>(&to.outer[g][group][k][2 * l]);
    };
    *part(0) = {high[0], high[1]};
    *part(1) = {low[0], low[1]};
    if constexpr (std::is_same_v<T, float>) *part(2) = {high[0], high[1]};
    to.terms[g][group][l] = {delta[0], delta[1], dy[0], dy[1]};
    to.finish[g][group][l] = {us.x, us.y, slope[0], slope[1]};
  }
}

// From the sums over states to du and ddt.
template <class T, int kStates>
__device__ __forceinline__ void finish_tile(const Place<T, kStates>& place, int block, int base) {
  using Tile = BackwardTile<kStates>;
  const BackwardArgs<T>& args = place.args;
  const WarpShared<T, kStates>& from = place.warp();
  const int g = place.lane / 4, l = place.lane % 4;
  if (g >= kBlockSteps) return;
  const float* skip = place.template shared<float>(place.at().skip);
#pragma unroll
  for (int group = 0; group < Tile::groups; ++group) {
    float4 sum = from.sums[group][g * Tile::sums + l];
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      const float4 more = from.sums[group][g * Tile::sums + 4 * i + l];
      sum.x += more.x;
      sum.y += more.y;
      sum.z += more.z;
      sum.w += more.w;
    }
    const float4 term = from.terms[g][group][l], end = from.finish[g][group][l];
    const int local = base + 8 * group + 2 * l;
    const PairPlace at = pair_place(place, block, local);
    const std::int64_t offset = offset_of(at, args.p.shape.channels);
    const float ddt[2] = {(end.x * sum.x + kLn2 * sum.z) * end.z,
                          (end.y * sum.y + kLn2 * sum.w) * end.w};
    store_pair(args.p.du + offset, term.x * sum.x + skip[local] * term.z,
               term.y * sum.y + skip[local + 1] * term.w, at.real, args.pairs);
    store_pair(args.p.ddt + offset, ddt[0], ddt[1], at.real, args.pairs);
    float4& parameters = place.template shared<float4>(
        place.at().parameters)[(base / 8 + group) * kWarp + place.lane];
    float4 total = parameters;
    total.x += ddt[0];
    total.y += ddt[1];
    total.z += term.z * end.x;
    total.w += term.w * end.y;
    parameters = total;
  }
}

// B and C of a block, as they are.
template <class T, int kStates>
__device__ __forceinline__ void stage_matrices(const Place<T, kStates>& place, int block) {
  const BackwardArgs<T>& args = place.args;
  const ScanInputs<T>& in = args.p.in;
  const int direction = place.where().rows.step, state = args.p.shape.state;
  const std::int64_t first = place.where().rows.at(block * kBlockSteps) * in.bc_stride +
                             place.where().part.direction * in.bc_direction;
  T* raw = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  stage_rows(raw, kStates, in.b + first, direction * in.bc_stride, place.steps(block), state,
             args.wide_states);
  stage_rows(raw + kBlockSteps * kStates, kStates, in.c + first, direction * in.bc_stride,
             place.steps(block), state, args.wide_states);
}

template <class T, int kStates>
__device__ __forceinline__ void widen_matrices(const Place<T, kStates>& place, int block) {
  constexpr int padded = BackwardTile<kStates>::padded;
  const T* raw = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  float* matrices = place.template shared<float>(BackwardLayout<T, kStates>::matrices);
  const int count = place.steps(block), state = place.args.p.shape.state;
  for (int i = thread_index(); i < 2 * kBlockSteps * padded; i += blockDim.x) {
    const int n = i % padded, matrix = i / padded % 2, t = i / (2 * padded);
    matrices[i] =
        t < count && n < state ? widen(raw[(matrix * kBlockSteps + t) * kStates + n]) : 0.0f;
  }
}

// Sums what the warps have gathered: dB and dC themselves where the CTA has all channels of the
// direction, else its share of them.
template <class T, int kStates>
__device__ __forceinline__ void store_matrices(const Place<T, kStates>& place, int block) {
  using Tile = BackwardTile<kStates>;
  const BackwardArgs<T>& args = place.args;
  const ScanShape& s = args.p.shape;
  const Where& where = place.where();
  const WarpShared<T, kStates>* warps =
      place.template shared<const WarpShared<T, kStates>>(BackwardLayout<T, kStates>::warps);
  const int count = place.steps(block);
  for (int i = thread_index(); i < Tile::strips * 2 * Tile::rows * kWarp; i += blockDim.x) {
    const auto part = [&](int warp) { return (&warps[warp].gathered[0][0][0][0])[i]; };
    float4 sum = part(0);
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
      const float4 more = part(warp);
      sum.x += more.x;
      sum.y += more.y;
      sum.z += more.z;
      sum.w += more.w;
    }
    const int lane = i % kWarp, row = i / kWarp % Tile::rows, matrix = i / kWarp / Tile::rows % 2;
    const int strip = i / kWarp / Tile::rows / 2;
    const int n = strip * Tile::states + Tile::state_of(lane / 4, row);
    const float values[2][2] = {{sum.x, sum.z}, {sum.y, sum.w}};  // [step][state]
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int t = lane % 4 * 2 + k;
      if (t >= count) continue;
      const std::int64_t at = where.rows.at(block * kBlockSteps + t);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (n + r >= s.state) continue;
        if (args.channel_blocks == 1) {
          T* to = (matrix ? args.p.dc : args.p.db) + at * args.p.in.bc_stride +
                  where.part.direction * args.p.in.bc_direction;
          to[n + r] = narrow<T>(values[k][r]);
        } else {
          const std::int64_t tokens = static_cast<std::int64_t>(s.batch) * s.length;
          const std::int64_t share = where.part.first / args.block_channels;
          const std::int64_t group = (share * tokens + at) * s.directions + where.part.direction;
          args.matrices[(group * 2 + matrix) * s.state + n + r] = values[k][r];
        }
      }
    }
  }
}

}  // namespace fm::scan
