// The backward kernel of the selective scan around its main loop: how a CTA's threads and shared
// memory are cut, and what happens to a block of steps before and after the loop over channels.
#pragma once

#include "kernels/selective_scan/selective_scan.cuh"

namespace fm::scan {

template <int kStates>
struct BackwardTile {
  // 8 warps of 255 registers fill an SM. Two CTAs hide each other's barriers; with 32 or 64 states
  // one CTA does better, as it has room for the q and dA of all 256 channels of a direction.
  static constexpr int warps = kStates == 32 || kStates == 64 ? 8 : 4;
  static constexpr int blocks_per_sm = 8 / warps;
  static constexpr int threads = warps * kWarp;
  static constexpr int state_lanes = kStates / 4;  // lanes that share a pair of channels
  static constexpr int pairs = kWarp / state_lanes;
  static constexpr int channels = warps * pairs * 2;          // of a CTA at a time
  static constexpr int gathered = 2 * kBlockSteps * kStates;  // dB and dC of a block
};

// What the CTA works on. It stands in shared memory: the main loop needs the registers.
struct alignas(16) Where {
  Part part;
  Rows rows;
  int channel;  // first channel of the CTA, counted over all directions
  int per_direction, blocks;
};

// Per-CTA shared memory, in bytes from its start. Rows of channels are `channels` long.
template <class T, int kStates>
struct BackwardLayout {
  using Tile = BackwardTile<kStates>;
  static constexpr int element = sizeof(T);
  static constexpr int where = 0;
  // Decay rates and saved states on their way to each thread: [2][threads] fours.
  static constexpr int rates = sizeof(Where);
  static constexpr int saved = rates + 2 * Tile::threads * 16;
  // B and C: [steps][2][states] float, and as they arrive: [2][steps][states] T.
  static constexpr int matrices = saved + 2 * Tile::threads * 4 * element;
  static constexpr int raw_matrices = matrices + Tile::gathered * 4;
  // q and dA: [channels][states] float.
  static constexpr int q = raw_matrices + Tile::gathered * element;
  int da;
  int terms;  // [channels][steps] float4; after the main loop dB and dC: [warps][gathered] float
  int sums;   // [channels][steps] float2
  int raw;    // [5][steps][channels] T
  int parameters;  // bias, D, sum of dbias, sum of dD: [4][channels] float
  int bytes;

  __host__ __device__ explicit BackwardLayout(int channels) {
    const int term_bytes = channels * kBlockSteps * 16;
    const int warp_bytes = Tile::warps * Tile::gathered * 4;
    da = q + channels * kStates * 4;
    terms = da + channels * kStates * 4;
    sums = terms + (term_bytes > warp_bytes ? term_bytes : warp_bytes);
    raw = sums + channels * kBlockSteps * 8;
    parameters = raw + 5 * kBlockSteps * channels * element;
    bytes = parameters + 4 * channels * 4;
  }
};

template <class T>
struct BackwardArgs {
  ScanBackward<T> p;
  int chunks, block_channels, channel_blocks;
  const float* q;      // gradients that enter the chunks at their ends; null: zero
  const float* rates;  // A log2(e), [channels][padded state]
  float* parameters;   // [image, chunk][channels (padded state + 2)]: dA, then dD, then dbias
  float* matrices;     // dB and dC of each channel block: [block][B L directions][2][state]
  bool wide_channels, wide_states;
};

enum RawRow { kRawU, kRawDt, kRawZ, kRawY, kRawDo };

// What the phases below share.
template <class T, int kStates>
struct Place {
  const BackwardArgs<T>& args;
  unsigned char* memory;

  template <class U>
  __device__ U* shared(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ const Where& where() const {
    return *shared<const Where>(BackwardLayout<T, kStates>::where);
  }
  __device__ BackwardLayout<T, kStates> at() const {
    return BackwardLayout<T, kStates>(args.block_channels);
  }
  __device__ int steps(int block) const {
    return min(kBlockSteps, args.p.shape.length - block * kBlockSteps);
  }
};

template <class T, int kStates>
__device__ __forceinline__ void stage_block(const Place<T, kStates>& place, int block) {
  const BackwardArgs<T>& args = place.args;
  const ScanInputs<T>& in = args.p.in;
  const ScanShape& s = args.p.shape;
  const std::int64_t row = place.where().rows.at(block * kBlockSteps);
  const int count = place.steps(block), direction = place.where().rows.step;
  const auto channels = [&](RawRow to, const T* from, std::int64_t stride) {
    stage_rows(place.template shared<T>(place.at().raw) + to * kBlockSteps * args.block_channels,
               args.block_channels, from + row * stride + place.where().channel, direction * stride,
               count, place.where().part.channels, args.wide_channels);
  };
  channels(kRawU, in.u, in.u_stride);
  channels(kRawDt, in.dt, in.dt_stride);
  channels(kRawZ, in.z, in.z_stride);
  channels(kRawY, args.p.y, s.channels);
  channels(kRawDo, args.p.d_o, s.channels);
  const std::int64_t first = row * in.bc_stride + place.where().part.direction * in.bc_direction;
  T* raw = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  stage_rows(raw, kStates, in.b + first, direction * in.bc_stride, count, s.state,
             args.wide_states);
  stage_rows(raw + kBlockSteps * kStates, kStates, in.c + first, direction * in.bc_stride, count,
             s.state, args.wide_states);
}

// Raw rows to {delta, delta u, dy, u} a channel and step and to B and C in floats; stores dz. Steps
// and channels beyond the shape become zero: they change neither q nor any sum.
template <class T, int kStates>
__device__ __forceinline__ void prepare_block(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  const BackwardArgs<T>& args = place.args;
  const int width = args.block_channels, count = place.steps(block);
  const T* raw = place.template shared<T>(place.at().raw);
  const float* bias = place.template shared<float>(place.at().parameters);
  float4* terms = place.template shared<float4>(place.at().terms);
  const int plane = kBlockSteps * width;
  for (int t = thread / kWarp; t < kBlockSteps; t += BackwardTile<kStates>::warps) {
    T* dz = args.p.dz + place.where().rows.at(block * kBlockSteps + t) * args.p.in.z_stride +
            place.where().channel;
    for (int c = thread % kWarp; c < width; c += kWarp) {
      float4 term = {0, 0, 0, 0};
      if (t < count && c < place.where().part.channels) {
        const T* at = raw + t * width + c;
        const float z = widen(at[kRawZ * plane]), d_o = widen(at[kRawDo * plane]);
        const float gate = sigmoid(z);
        dz[c] = narrow<T>(d_o * widen(at[kRawY * plane]) * gate * (1.0f + z * (1.0f - gate)));
        term.w = widen(at[kRawU * plane]);
        term.x = softplus(widen(at[kRawDt * plane]) + bias[c]);
        term.y = term.x * term.w;
        term.z = d_o * z * gate;
      }
      terms[c * kBlockSteps + t] = term;
    }
  }
  const T* raw_matrices = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  float* matrices = place.template shared<float>(BackwardLayout<T, kStates>::matrices);
  const int state = args.p.shape.state;
  for (int i = thread; i < kBlockSteps * kStates; i += BackwardTile<kStates>::threads) {
    const int t = i / kStates, n = i % kStates;
    const bool real = t < count && n < state;
    matrices[2 * t * kStates + n] = real ? widen(raw_matrices[i]) : 0.0f;
    matrices[(2 * t + 1) * kStates + n] =
        real ? widen(raw_matrices[kBlockSteps * kStates + i]) : 0.0f;
  }
}

// Sums over the CTA's earlier blocks of dr and dy u, left in `sums` by finish_channels: a thread a
// channel.
template <class T, int kStates>
__device__ __forceinline__ void add_parameters(const Place<T, kStates>& place) {
  const int thread = thread_index();
  const int width = place.args.block_channels;
  float* parameters = place.template shared<float>(place.at().parameters);
  const float2* sums = place.template shared<float2>(place.at().sums);
  for (int c = thread; c < width; c += BackwardTile<kStates>::threads) {
    float dbias = parameters[2 * width + c], skip = parameters[3 * width + c];
    for (int t = 0; t < kBlockSteps; ++t) {
      dbias += sums[c * kBlockSteps + t].x;
      skip += sums[c * kBlockSteps + t].y;
    }
    parameters[2 * width + c] = dbias;
    parameters[3 * width + c] = skip;
  }
}

// From the sums over states to du and ddt. softplus' = 1 - exp(-delta) on both of its branches.
template <class T, int kStates>
__device__ __forceinline__ void finish_channels(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  const BackwardArgs<T>& args = place.args;
  const int width = args.block_channels, count = place.steps(block);
  const float* skip = place.template shared<float>(place.at().parameters) + width;
  const float4* terms = place.template shared<float4>(place.at().terms);
  float2* sums = place.template shared<float2>(place.at().sums);
  for (int t = thread / kWarp; t < kBlockSteps; t += BackwardTile<kStates>::warps) {
    const std::int64_t row =
        place.where().rows.at(block * kBlockSteps + t) * args.p.shape.channels +
        place.where().channel;
    for (int c = thread % kWarp; c < width; c += kWarp) {
      const float4 term = terms[c * kBlockSteps + t];
      const float2 sum = sums[c * kBlockSteps + t];
      const float ddt = (term.w * sum.x + kLn2 * sum.y) * -expm1f(-term.x);
      if (t < count && c < place.where().part.channels) {
        args.p.du[row + c] = narrow<T>(term.x * sum.x + skip[c] * term.z);
        args.p.ddt[row + c] = narrow<T>(ddt);
      }
      sums[c * kBlockSteps + t] = {ddt, term.z * term.w};
    }
  }
}

// dB and dC of a block, summed over the lanes of each warp that share states, to the warps' rows in
// shared memory. Halving exchange: of two values a lane keeps one and gives the other away.
template <class T, int kStates>
__device__ __forceinline__ void gather_matrices(const Place<T, kStates>& place,
                                                float (&gathered)[kBlockSteps][8]) {
  const int thread = thread_index();
  using Cut = BackwardTile<kStates>;
  const int lane = thread % kWarp;
  float* rows = place.template shared<float>(place.at().terms) + thread / kWarp * Cut::gathered +
                lane % Cut::state_lanes * 4;
#pragma unroll
  for (int t = 0; t < kBlockSteps; ++t) {
    float(&v)[8] = gathered[t];  // dB, then dC of the thread's four states
    int matrix = 0, offset = 0;
    if constexpr (Cut::pairs >= 2) {
      const bool high = lane & 16;
      matrix = high;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float given = high ? v[i] : v[4 + i];
        v[i] = (high ? v[4 + i] : v[i]) + __shfl_xor_sync(0xffffffffu, given, 16);
      }
    }
    if constexpr (Cut::pairs >= 4) {
      const bool high = lane & 8;
      offset += high ? 2 : 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float given = high ? v[i] : v[2 + i];
        v[i] = (high ? v[2 + i] : v[i]) + __shfl_xor_sync(0xffffffffu, given, 8);
      }
    }
    if constexpr (Cut::pairs >= 8) {
      const bool high = lane & 4;
      offset += high;
      const float given = high ? v[0] : v[1];
      v[0] = (high ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, given, 4);
    }
    if constexpr (Cut::pairs >= 16) v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);

    float* to = rows + (2 * t + matrix) * kStates + offset;
    if constexpr (Cut::pairs == 1) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
      *reinterpret_cast<float4*>(to + kStates) = {v[4], v[5], v[6], v[7]};
    } else if constexpr (Cut::pairs == 2) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    } else if constexpr (Cut::pairs == 4) {
      *reinterpret_cast<float2*>(to) = {v[0], v[1]};
    } else if constexpr (Cut::pairs == 8) {
      *to = v[0];
    } else {
      if (!(lane & 2)) *to = v[0];
    }
  }
}

// Sums the warps' rows: dB and dC themselves where the CTA has all channels of the direction, else
// its share of them.
template <class T, int kStates>
__device__ __forceinline__ void store_matrices(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  using Cut = BackwardTile<kStates>;
  const BackwardArgs<T>& args = place.args;
  const ScanShape& s = args.p.shape;
  const float* rows = place.template shared<float>(place.at().terms);
  const int count = place.steps(block);
  for (int i = thread; i < count * 2 * kStates; i += Cut::threads) {
    const int n = i % kStates, matrix = i / kStates % 2, t = i / (2 * kStates);
    if (n >= s.state) continue;
    float sum = rows[i];
#pragma unroll
    for (int warp = 1; warp < Cut::warps; ++warp) sum += rows[warp * Cut::gathered + i];
    const std::int64_t row = place.where().rows.at(block * kBlockSteps + t);
    if (args.channel_blocks == 1) {
      T* to = matrix ? args.p.dc : args.p.db;
      to[row * args.p.in.bc_stride + place.where().part.direction * args.p.in.bc_direction + n] =
          narrow<T>(sum);
    } else {
      const std::int64_t tokens = static_cast<std::int64_t>(s.batch) * s.length;
      const std::int64_t channel_block = place.where().part.first / args.block_channels;
      const std::int64_t group =
          (channel_block * tokens + row) * s.directions + place.where().part.direction;
      args.matrices[(group * 2 + matrix) * s.state + n] = sum;
    }
  }
}

}  // namespace fm::scan
