// Staging of the forward and the chunk passes, a group of Tile::steps steps at a time.
//
// B and C are shared by the CTA: a thread turns the pieces it has copied itself into floats, in two
// or three slots, so that a group needs one barrier. Rows of channels belong to the warp that scans
// them: no barrier but the warp's own. Both kinds arrive by cp.async while the group before is
// scanned. Channels beyond the last are staged as whatever memory holds: no other channel reads
// them, and nothing of theirs is stored.
#pragma once

#include "kernels/selective_scan/selective_scan_lines.cuh"

namespace fm::scan {

// kMatrices of B and C, kSlots groups of them in floats.
template <class T, int kStates, int kMatrices, int kSlots = 2>
struct MatrixStage {
  static constexpr int steps = Tile<kStates>::steps;
  static constexpr int piece = 16 / sizeof(T);
  static constexpr int row_pieces = kMatrices * kStates / piece;
  T raw[steps][kMatrices][kStates];
  float at[kSlots][steps][kMatrices][kStates];

  // body(step, matrix, first state) for this thread's pieces of the first `count` steps.
  template <class Body>
  static __device__ __forceinline__ void each_piece(int count, Body&& body) {
    constexpr int threads = Tile<kStates>::threads;
    const int thread = thread_index();
#pragma unroll
    for (int round = 0; round < ceil_div(steps * row_pieces, threads); ++round) {
      const int i = round * threads + thread, t = i / row_pieces;
      if (t < count) body(t, i % row_pieces / (kStates / piece), i % (kStates / piece) * piece);
    }
  }

  // source(step, matrix): the row.
  template <class Source>
  __device__ __forceinline__ void copy(int count, int state, bool wide, Source&& source) {
    each_piece(count, [&](int t, int m, int n) {
      const T* from = source(t, m) + n;
      if (wide) {
        if (n < state) copy_async<16>(&raw[t][m][n], from);
      } else {
#pragma unroll 1
        for (int e = 0; e < piece && n + e < state; ++e) raw[t][m][n + e] = from[e];
      }
    });
  }

  // This thread's pieces, which have arrived, to floats. States beyond the shape become zero.
  __device__ __forceinline__ void convert(int slot, int count, int state) {
    each_piece(count, [&](int t, int m, int n) {
      float values[piece];
      load_wide(values, &raw[t][m][n]);
      if (n + piece > state) {
#pragma unroll
        for (int e = 0; e < piece; ++e) values[e] = n + e < state ? values[e] : 0.0f;
      }
#pragma unroll
      for (int e = 0; e < piece; e += 4)
        *reinterpret_cast<float4*>(&at[slot][t][m][n + e]) = {values[e], values[e + 1],
                                                              values[e + 2], values[e + 3]};
    });
  }
};

// kRows arrays of a warp's channels. The first is dt's; in the place of its rows may be those of
// dt_low.
template <class T, int kStates, int kRows>
struct ChannelStage {
  static constexpr int steps = Tile<kStates>::steps;
  static constexpr int width = Tile<kStates>::warp_channels;
  T raw[2][kRows][Tile<kStates>::padded_steps][width];

  __device__ T* low(int buffer) { return raw[buffer][0][0]; }
  __device__ const T* low(int buffer) const { return raw[buffer][0][0]; }

  // source(step): the row of dt_low. `wide` as of wide_low().
  template <class Source>
  __device__ __forceinline__ void copy_low(int buffer, int count, int rank, bool wide,
                                           Source&& source) {
    static_assert(steps <= kWarp && width >= kLowRank);
    const int t = thread_index() % kWarp;
    if (t >= count) return;
    T* to = low(buffer) + t * kLowRank;
    if (wide) {
      copy_async<16>(to, source(t));
    } else {
#pragma unroll 1
      for (int r = 0; r < kLowRank; ++r) to[r] = r < rank ? source(t)[r] : narrow<T>(0.0f);
    }
  }

  // The arrays from `first` to before `end`. source(array, step): the array's row at the warp's
  // first channel.
  template <class Source>
  __device__ __forceinline__ void copy(int buffer, int first, int end, int count, int channels,
                                       bool wide, Source&& source) {
    const int lane = thread_index() % kWarp;
    if (wide) {
      constexpr int piece = 16 / sizeof(T), row = width / piece;
#pragma unroll
      for (int round = 0; round < ceil_div(steps * row, kWarp); ++round) {
        const int t = (round * kWarp + lane) / row, c = lane % row * piece;
        if (t >= count || c >= channels) continue;
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (r >= first && r < end) copy_async<16>(&raw[buffer][r][t][c], source(r, t) + c);
      }
    } else {
#pragma unroll 1
      for (int i = lane + first * count * width; i < end * count * width; i += kWarp) {
        const int c = i % width, t = i / width % count, r = i / width / count;
        if (c < channels) raw[buffer][r][t][c] = source(r, t)[c];
      }
    }
  }
};

// The lane's pieces: the channels from `channel` of steps `step` + i row_lanes, i < rounds.
template <int kStates>
struct Pieces {
  int step, channel;
  __device__ __forceinline__ Pieces() {
    using Cut = Tile<kStates>;
    const int lane = thread_index() % kWarp;
    step = lane / (Cut::warp_channels / Cut::piece);
    channel = lane % (Cut::warp_channels / Cut::piece) * Cut::piece;
  }
};

// Whether the wide forward tile projects dt. With fewer states staging is most of the work: at 16
// the projection takes longer here than as a product of its own (H100: 45 us, 33).
template <class T, int kStates>
constexpr bool kProjects = sizeof(T) == 2 && kStates >= 32;

// A warp's part of dt's projection, dt[step][channel] = sum_r low[step][r] weight[channel][r]. By
// multiply-adds: two m16n8k8 a group of steps would do, but with any product of the tensor cores in
// it an H100 runs a kernel at 1.81 GHz instead of 1.99.
template <class T, int kStates>
struct Projection {
  using Cut = Tile<kStates>;
  float weight[kProjects<T, kStates> ? kLowRank : 1][Cut::warp_channels];

  // `from`: dt_weight at the warp's first channel.
  __device__ __forceinline__ void load(const T* from, int channels, int rank) {
    const int lane = thread_index() % kWarp;
#pragma unroll 1
    for (int i = lane; i < kLowRank * Cut::warp_channels; i += kWarp) {
      const int r = i % kLowRank, c = i / kLowRank;
      weight[r][c] = r < rank && c < channels ? widen(from[c * rank + r]) : 0.0f;
    }
  }

  // Adds to dt of the lane's pieces of the steps from `step`, row_lanes apart.
  template <int kRounds>
  __device__ __forceinline__ void project(float (&dt)[kRounds][Cut::piece], const T* low, int step,
                                          int channel) const {
    uint4 factors[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      factors[i] = *reinterpret_cast<const uint4*>(low + (step + i * Cut::row_lanes) * kLowRank);
#pragma unroll
    for (int r = 0; r < kLowRank; r += 2) {
      float w[2][Cut::piece];
      load_wide(w[0], &weight[r][channel]);
      load_wide(w[1], &weight[r + 1][channel]);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const float2 x = widen_pair<T>((&factors[i].x)[r / 2]);
#pragma unroll
        for (int k = 0; k < Cut::piece; ++k)
          dt[i][k] = fmaf(x.y, w[1][k], fmaf(x.x, w[0][k], dt[i][k]));
      }
    }
  }
};

// body(step, channel, dt + bias) for the lane's pieces, whose rows have arrived in the warp's
// shared memory. Two rounds share the weights of a projection.
template <bool kProjected, int kStates, class Warp, class Body>
__device__ __forceinline__ void each_dt(const Warp& warp, int buffer, Body&& body) {
  using Cut = Tile<kStates>;
  const Pieces<kStates> own;
  constexpr int together = kProjected && Cut::rounds % 2 == 0 ? 2 : 1;
  float bias[Cut::piece];
  load_wide(bias, &warp.bias[own.channel]);
#pragma unroll
  for (int i = 0; i < Cut::rounds; i += together) {
    const int step = own.step + i * Cut::row_lanes;
    float dt[together][Cut::piece];
#pragma unroll
    for (int j = 0; j < together; ++j) {
      if constexpr (!kProjected) load_wide(dt[j], &warp.rows.raw[buffer][0][step][own.channel]);
#pragma unroll
      for (int k = 0; k < Cut::piece; ++k) dt[j][k] = kProjected ? bias[k] : dt[j][k] + bias[k];
    }
    if constexpr (kProjected) warp.projection.project(dt, warp.rows.low(buffer), step, own.channel);
#pragma unroll
    for (int j = 0; j < together; ++j) body(step + j * Cut::row_lanes, own.channel, dt[j]);
  }
}

// The channels of a warp: the first one, counted in the direction and over all, and how many.
struct WarpChannels {
  int first, channel, count;
  __device__ __forceinline__ WarpChannels(const ScanShape& s, const Part& part, int warp,
                                          int width) {
    const int per_direction = s.channels / s.directions;
    first = part.first + warp * width;
    channel = part.direction * per_direction + first;
    count = min(max(per_direction - first, 0), width);
  }
};

// The thread's place in its warp.
template <int kStates>
struct Seat {
  int warp, lane;  // lane of those that share the channels
  int channel[2];  // in the warp
  // Odd lanes hold their two channels in swapped order, so that the first exchange of the sum over
  // lanes needs no selection: each lane keeps its slot 0 and gives its slot 1 away.
  __device__ __forceinline__ Seat() {
    using Cut = Tile<kStates>;
    warp = threadIdx.x / kWarp;
    lane = threadIdx.x % Cut::lanes;
    const int swap = Cut::lanes > 1 ? lane & 1 : 0;
    const int pair = threadIdx.x % kWarp / Cut::lanes * 2;
    channel[0] = pair + swap;
    channel[1] = pair + 1 - swap;
  }
  __device__ __forceinline__ int state(int i) const {
    constexpr int run = Tile<kStates>::run;
    return (i / run * Tile<kStates>::lanes + lane) * run + i % run;
  }
};

// Whether the decay of a thread's state i is one of kCount polynomials. float has no error to spare
// for them.
template <class T, int kCount>
__host__ __device__ constexpr bool by_polynomial(int i) {
  return sizeof(T) == 2 && i % 4 == 3 && i / 4 < kCount;
}

template <class T, int kCount>
__device__ __forceinline__ float decay_of(int i, float delta, float rate) {
  return by_polynomial<T, kCount>(i) ? exp2_polynomial(delta, rate) : exp2_approx(delta * rate);
}

// Rates for decay_of of the thread's channels and states, zero beyond the shape; `a_log` at the
// warp's first channel. A CTA is short enough for this to show: 4 us of 548 by 16-byte loads and
// the hardware's exponential.
template <class T, int kStates, int kCount>
__device__ __forceinline__ void load_rates(float (&rate)[2][Tile<kStates>::per_thread],
                                           const float* a_log, const Seat<kStates>& seat,
                                           int channels, int state) {
  const bool wide = state % 4 == 0 && reinterpret_cast<std::uintptr_t>(a_log) % 16 == 0;
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int i = 0; i < Tile<kStates>::per_thread; i += 4) {
      const int n = seat.state(i);
      const float* from = a_log + static_cast<std::int64_t>(seat.channel[k]) * state + n;
      float logs[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (seat.channel[k] < channels && n < state) {
        if (wide) {
          load_wide(logs, from);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (n + e < state) logs[e] = from[e];
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        rate[k][i + e] = -kLog2e * exp2_approx(kLog2e * logs[e]);
        if (by_polynomial<T, kCount>(i + e)) rate[k][i + e] *= -1.0f / kLeastExponent;
      }
    }
}

}  // namespace fm::scan
