// The float path's pieces, forward and backward. Eight channels run side by side in the lanes of a
// vector: token-major arrays are contiguous that way, any state size fits, and y needs no sum
// across lanes. A block of 16 steps is staged once (softplus, gate); then every state n runs
// through it with its h or q in a register.
//
// Only the sequence's last block can be short. Its steps past the end repeat the last token with
// a gradient of 0: q passes them as 0, and nobody reads their h. Lanes past the last channel of a
// direction are zero. Private to this folder.
#pragma once

#include <bit>

#include "kernels/base/fast_math.h"
#include "kernels/selective_scan/selective_scan_cpu.h"

namespace fm::scan_cpu {

constexpr int kLanes = 8;  // one AVX register
constexpr int kSteps = kStatesEvery;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// Always passed by reference: by value they have a different ABI with and without AVX.
typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));
typedef std::int32_t IntLanes __attribute__((vector_size(sizeof(float) * kLanes)));

// Element i of a run of lanes.
inline float* elements(Lanes* lanes) {
  return reinterpret_cast<float*>(lanes);
}
inline const float* elements(const Lanes* lanes) {
  return reinterpret_cast<const float*>(lanes);
}

// x becomes 2^x, within 2.5 ulp for x from -126 to 0; 0 below, NaN stays NaN. x = n + r with n the
// nearest integer, and a minimax polynomial with p(0) = 1, so that decays near 1 are right.
inline void exp2_lanes(Lanes& x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -127.0f ? Lanes{} - 127.0f : x;
  const Lanes shifted = x + kMagic;
  const Lanes r = x - (shifted - kMagic);
  Lanes p = r * 0.00132647273f + 0.00967151299f;
  p = p * r + 0.0555073358f;
  p = p * r + 0.240222424f;
  p = p * r + 0.693147004f;
  p = p * r + 1.0f;
  const IntLanes n = reinterpret_cast<IntLanes>(shifted) - std::bit_cast<std::int32_t>(kMagic);
  x = p * reinterpret_cast<Lanes>((n + 127) << 23);
}

// Groups of kLanes channels; a group lies in one direction.
struct Group {
  int image, direction, index;  // which group of its direction
  int channel, width;           // first channel and number of channels
};
inline int groups_of(const ScanShape& s) {
  return (s.channels / s.directions + kLanes - 1) / kLanes;
}
inline Group group_of(const ScanShape& s, int image, int direction, int index) {
  const int per_direction = s.channels / s.directions;
  return {image, direction, index, direction * per_direction + index * kLanes,
          std::min(kLanes, per_direction - index * kLanes)};
}

// Saved states: [image][block][direction][group][n] lanes. `begin` is the first step of a block.
inline std::int64_t state_at(const ScanShape& s, const Group& g, int begin) {
  const std::int64_t block =
      static_cast<std::int64_t>(g.image) * blocks_of(s) + begin / kStatesEvery;
  return ((block * s.directions + g.direction) * groups_of(s) + g.index) * s.state;
}

inline void load(Lanes& to, const float* from, int width) {
  if (width == kLanes) {
    for (int i = 0; i < kLanes; ++i) to[i] = from[i];
  } else {
    to = Lanes{};
    for (int i = 0; i < width; ++i) to[i] = from[i];
  }
}
inline void store(float* to, const Lanes& from, int width) {
  if (width == kLanes) {
    for (int i = 0; i < kLanes; ++i) to[i] = from[i];
  } else {
    for (int i = 0; i < width; ++i) to[i] = from[i];
  }
}

// A log2(e) of a group, so that exp(delta A) = 2^(delta a2).
inline void load_a2(const ScanInputs<float>& in, int state, const Group& g, Lanes* a2) {
  std::fill_n(a2, state, Lanes{});
  for (int i = 0; i < g.width; ++i)
    for (int n = 0; n < state; ++n)
      a2[n][i] = -kLog2e * fast_exp(in.a_log[static_cast<std::int64_t>(g.channel + i) * state + n]);
}

// A block of steps of one group, staged: row of the token, rows of B and C, and what is the same
// for every state.
struct Block {
  int steps;
  std::int64_t row[kSteps];
  const float *b[kSteps], *c[kSteps];
  Lanes x[kSteps];              // dt + bias
  Lanes delta[kSteps];          // softplus(x)
  Lanes u[kSteps], du[kSteps];  // u and delta u
};

inline void stage(const ScanShape& s, const ScanInputs<float>& in, const Group& g, Steps steps,
                  Block& k) {
  Lanes bias;
  load(bias, in.dt_bias + g.channel, g.width);
  k.steps = steps.end - steps.begin;
  for (int t = 0; t < kSteps; ++t) {
    const int step = std::min(steps.begin + t, steps.end - 1);
    const std::int64_t row = row_of(s, g.image, g.direction, step);
    const std::int64_t at = row * in.bc_stride + g.direction * in.bc_direction;
    k.row[t] = row;
    k.b[t] = in.b + at;
    k.c[t] = in.c + at;
    load(k.x[t], in.dt + row * in.dt_stride + g.channel, g.width);
    load(k.u[t], in.u + row * in.u_stride + g.channel, g.width);
    k.x[t] += bias;
  }
  const float* x = elements(k.x);
  float* delta = elements(k.delta);
#pragma omp simd
  for (int i = 0; i < kSteps * kLanes; ++i) delta[i] = fast_softplus(x[i]);
  for (int t = 0; t < kSteps; ++t) k.du[t] = k.delta[t] * k.u[t];
}

inline void add_deltas(const Block& k, Lanes& sum) {
  for (int t = 0; t < kSteps; ++t) sum += k.delta[t];
}

// From one end of a chunk to the other: adds exp(A sum of delta) `from` to `to`.
inline void carry(int state, const Lanes* a2, const Lanes& delta_sum, const Lanes* from,
                  Lanes* to) {
  for (int n = 0; n < state; ++n) {
    Lanes decay = a2[n] * delta_sum;
    exp2_lanes(decay);
    to[n] += decay * from[n];
  }
}

}  // namespace fm::scan_cpu
