// Staging of the forward and the chunk passes, a group of Tile::steps steps at a time.
//
// B and C are shared by the CTA: a thread turns the pieces it has copied itself into floats, in two
// buffers, so that a group needs one barrier. Rows of channels belong to the warp that scans them:
// no barrier but the warp's own. Both kinds arrive by cp.async while the group before is scanned.
// Channels beyond the last are staged as whatever memory holds: no other channel reads them, and
// nothing of theirs is stored.
#pragma once

#include "kernels/selective_scan/selective_scan_lines.cuh"

namespace fm::scan {

// kMatrices of B and C.
template <class T, int kStates, int kMatrices>
struct MatrixStage {
  static constexpr int steps = Tile<kStates>::steps;
  static constexpr int piece = 16 / sizeof(T);
  static constexpr int row_pieces = kMatrices * kStates / piece;
  T raw[steps][kMatrices][kStates];
  float at[2][steps][kMatrices][kStates];

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
  __device__ __forceinline__ void convert(int buffer, int count, int state) {
    each_piece(count, [&](int t, int m, int n) {
      float values[piece];
      load_wide(values, &raw[t][m][n]);
      if (n + piece > state) {
#pragma unroll
        for (int e = 0; e < piece; ++e) values[e] = n + e < state ? values[e] : 0.0f;
      }
#pragma unroll
      for (int e = 0; e < piece; e += 4)
        *reinterpret_cast<float4*>(&at[buffer][t][m][n + e]) = {values[e], values[e + 1],
                                                                values[e + 2], values[e + 3]};
    });
  }
};

// kRows arrays of a warp's channels.
template <class T, int kStates, int kRows>
struct ChannelStage {
  static constexpr int steps = Tile<kStates>::steps;
  static constexpr int width = Tile<kStates>::warp_channels;
  T raw[2][kRows][Tile<kStates>::padded_steps][width];

  // source(array, step): the array's row at the warp's first channel.
  template <class Source>
  __device__ __forceinline__ void copy(int buffer, int count, int channels, bool wide,
                                       Source&& source) {
    const int lane = thread_index() % kWarp;
    if (wide) {
      constexpr int piece = 16 / sizeof(T), row = width / piece;
#pragma unroll
      for (int round = 0; round < ceil_div(steps * row, kWarp); ++round) {
        const int t = (round * kWarp + lane) / row, c = lane % row * piece;
        if (t >= count || c >= channels) continue;
#pragma unroll
        for (int r = 0; r < kRows; ++r) copy_async<16>(&raw[buffer][r][t][c], source(r, t) + c);
      }
    } else {
#pragma unroll 1
      for (int i = lane; i < kRows * count * width; i += kWarp) {
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
// warp's first channel.
template <class T, int kStates, int kCount>
__device__ __forceinline__ void load_rates(float (&rate)[2][Tile<kStates>::per_thread],
                                           const float* a_log, const Seat<kStates>& seat,
                                           int channels, int state) {
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int i = 0; i < Tile<kStates>::per_thread; ++i) {
      const int n = seat.state(i);
      rate[k][i] = seat.channel[k] < channels && n < state
                       ? decay_rate(a_log[static_cast<std::int64_t>(seat.channel[k]) * state + n])
                       : 0.0f;
      if (by_polynomial<T, kCount>(i)) rate[k][i] *= -1.0f / kLeastExponent;
    }
}

}  // namespace fm::scan
