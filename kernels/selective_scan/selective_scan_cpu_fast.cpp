// The float path. Sixteen channels run side by side in vector lanes, for which token-major arrays
// are contiguous, any state size fits and y needs no sum across lanes. A block of 16 steps is
// staged once (softplus, gate), then every state n runs through it with its h or q in registers.
//
// Steps past the end of a block have delta 0 and inputs 0: they leave h and q alone. Lanes past the
// last channel of a direction are zero.
#include <utility>

#include "kernels/base/fast_math.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/selective_scan/selective_scan_cpu.h"

namespace fm::scan {
namespace {

constexpr int kLanes = 16;
constexpr int kSteps = kStatesEvery;
// Backward: images are shared out to this many pieces a direction at most, each with its own sums.
constexpr int kSlices = 64;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

using Lanes = float[kLanes];

// Groups of kLanes channels; a group lies in one direction.
int groups_of(const ScanShape& s) {
  return (s.channels / s.directions + kLanes - 1) / kLanes;
}

struct Group {
  int image, direction, channel, width;  // first channel and number of channels
};
Group group_of(const ScanShape& s, int image, int direction, int index) {
  const int per_direction = s.channels / s.directions;
  return {image, direction, direction * per_direction + index * kLanes,
          std::min(kLanes, per_direction - index * kLanes)};
}

// Saved states: [image][block][direction][group][n] lanes.
Lanes* states_of(const ScanShape& s, void* states, int image, int block, int direction, int group) {
  const std::int64_t at =
      ((static_cast<std::int64_t>(image) * blocks_of(s) + block) * s.directions + direction) *
          groups_of(s) +
      group;
  return static_cast<Lanes*>(states) + at * s.state;
}

inline void load(Lanes to, const float* from, int width) {
  if (width == kLanes) {
    for (int i = 0; i < kLanes; ++i) to[i] = from[i];
  } else {
    for (int i = 0; i < kLanes; ++i) to[i] = i < width ? from[i] : 0.0f;
  }
}
inline void store(float* to, const Lanes from, int width) {
  if (width == kLanes) {
    for (int i = 0; i < kLanes; ++i) to[i] = from[i];
  } else {
    for (int i = 0; i < width; ++i) to[i] = from[i];
  }
}
inline void set_zero(Lanes* rows, int count) {
  std::fill_n(&rows[0][0], static_cast<std::int64_t>(count) * kLanes, 0.0f);
}

// What is constant over time: A log2(e), so that exp(delta A) = 2^(delta a2), D and the bias.
inline void load_a2(const ScanInputs<float>& in, int state, const Group& g, Lanes* a2) {
  set_zero(a2, state);
  for (int i = 0; i < g.width; ++i)
    for (int n = 0; n < state; ++n)
      a2[n][i] = -kLog2e * fast_exp(in.a_log[static_cast<std::int64_t>(g.channel + i) * state + n]);
}

// A block of steps of one group, staged.
struct alignas(64) Block {
  Lanes x[kSteps];                                       // dt + bias
  Lanes delta[kSteps];                                   // softplus(x)
  Lanes u[kSteps], du[kSteps];                           // u and delta u
  Lanes y[kSteps];                                       // forward
  Lanes d_o[kSteps], dy[kSteps], sg[kSteps], z[kSteps];  // backward; sg = sigmoid(z)
  Lanes s1[kSteps], s2[kSteps];                          // sum_n g B and sum_n a2 dlog
  const float* b[kSteps];
  const float* c[kSteps];
  std::int64_t row[kSteps];
  int steps;
};

inline void stage(const ScanShape& s, const ScanInputs<float>& in, const Group& g, Steps steps,
                  Block& k) {
  alignas(64) Lanes bias;
  load(bias, in.dt_bias + g.channel, g.width);
  k.steps = steps.end - steps.begin;
  for (int t = 0; t < kSteps; ++t) {
    const int step = std::min(steps.begin + t, steps.end - 1);
    const std::int64_t row = row_of(s, g.image, g.direction, step);
    k.row[t] = row;
    k.b[t] = in.b + row * in.bc_stride + g.direction * in.bc_direction;
    k.c[t] = in.c + row * in.bc_stride + g.direction * in.bc_direction;
    load(k.x[t], in.dt + row * in.dt_stride + g.channel, g.width);
    load(k.u[t], in.u + row * in.u_stride + g.channel, g.width);
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      k.x[t][i] += bias[i];
      k.delta[t][i] = fast_softplus(k.x[t][i]);
      k.du[t][i] = k.delta[t][i] * k.u[t][i];
    }
  }
  set_zero(k.delta + k.steps, kSteps - k.steps);
  set_zero(k.du + k.steps, kSteps - k.steps);
}

// Adds what the gate passes back.
inline void stage_gradient(const ScanBackward<float>& p, const Group& g, Block& k) {
  for (int t = 0; t < kSteps; ++t) {
    load(k.z[t], p.in.z + k.row[t] * p.in.z_stride + g.channel, g.width);
    load(k.d_o[t], p.d_o + k.row[t] * p.shape.channels + g.channel, g.width);
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      k.sg[t][i] = fast_sigmoid(k.z[t][i]);
      k.dy[t][i] = k.d_o[t][i] * k.z[t][i] * k.sg[t][i];
    }
  }
  set_zero(k.dy + k.steps, kSteps - k.steps);
}

// h runs over the block; y is added to.
inline void advance(int state, const Lanes* a2, Lanes* h, Block& k) {
  for (int n = 0; n < state; ++n) {
    for (int t = 0; t < kSteps; ++t) {
      const float b = k.b[t][n], c = k.c[t][n];
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        h[n][i] = fast_exp2(k.delta[t][i] * a2[n][i]) * h[n][i] + k.du[t][i] * b;
        k.y[t][i] += c * h[n][i];
      }
    }
  }
}

// The state after a chunk from the state before it: adds exp(A sum of delta) `from` to `to`.
inline void carry(int state, const Lanes* a2, const Lanes delta_sum, const Lanes* from, Lanes* to) {
  for (int n = 0; n < state; ++n) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) to[n][i] += fast_exp2(a2[n][i] * delta_sum[i]) * from[n][i];
  }
}

inline void add_deltas(const Block& k, Lanes sum) {
  for (int t = 0; t < kSteps; ++t)
    for (int i = 0; i < kLanes; ++i) sum[i] += k.delta[t][i];
}

FM_SIMD void forward_group(const ScanForward<float>& p, int chunks, int image, int direction,
                           int index) {
  const ScanShape& s = p.shape;
  const Group g = group_of(s, image, direction, index);
  alignas(64) Lanes a2[kMaxState], h[kMaxState], next[kMaxState], D, delta_sum;
  Block k;
  load_a2(p.in, s.state, g, a2);
  load(D, p.in.d + g.channel, g.width);
  set_zero(h, s.state);
  set_zero(next, s.state);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Steps steps = steps_of(s, chunks, chunk);
    if (chunk + 1 < chunks) {
      set_zero(next, s.state);
      set_zero(&delta_sum, 1);
      for (int t = steps.begin; t < steps.end; t += kSteps) {
        stage(s, p.in, g, {t, std::min(t + kSteps, steps.end)}, k);
        set_zero(k.y, kSteps);
        advance(s.state, a2, next, k);
        add_deltas(k, delta_sum);
      }
      carry(s.state, a2, delta_sum, h, next);
    }
    for (int t = steps.begin; t < steps.end; t += kSteps) {
      stage(s, p.in, g, {t, std::min(t + kSteps, steps.end)}, k);
      if (p.states)
        std::copy_n(&h[0][0], s.state * kLanes,
                    &states_of(s, p.states, image, t / kSteps, direction, index)[0][0]);
      for (int j = 0; j < kSteps; ++j)
        for (int i = 0; i < kLanes; ++i) k.y[j][i] = D[i] * k.u[j][i];
      advance(s.state, a2, h, k);
      for (int j = 0; j < k.steps; ++j) {
        alignas(64) Lanes o;
        load(o, p.in.z + k.row[j] * p.in.z_stride + g.channel, g.width);
#pragma omp simd
        for (int i = 0; i < kLanes; ++i) o[i] = k.y[j][i] * o[i] * fast_sigmoid(o[i]);
        store(p.o + k.row[j] * s.channels + g.channel, o, g.width);
        if (p.y) store(p.y + k.row[j] * s.channels + g.channel, k.y[j], g.width);
      }
    }
    std::copy_n(&next[0][0], s.state * kLanes, &h[0][0]);
  }
}

// q runs back over the block; nothing else is wanted.
inline void reverse_only(int state, const Lanes* a2, Lanes* q, const Block& k) {
  for (int n = 0; n < state; ++n) {
    for (int t = kSteps - 1; t >= 0; --t) {
      const float c = k.c[t][n];
#pragma omp simd
      for (int i = 0; i < kLanes; ++i)
        q[n][i] = (q[n][i] + c * k.dy[t][i]) * fast_exp2(k.delta[t][i] * a2[n][i]);
    }
  }
}

// What a piece of the backward pass works in, per direction. The first three are sums over the
// piece's images and stay; the others are scratch of one image.
struct Piece {
  Lanes* dA;       // [groups][n]
  Lanes* dD;       // [groups]
  Lanes* dbias;    // [groups]
  Lanes* a2;       // [groups][n]
  Lanes* q;        // [groups][n]
  Lanes* next;     // [groups][n]
  Lanes *db, *dc;  // [n][step], each lane its channels' part
};

std::int64_t lanes_of_piece(const ScanShape& s) {
  return static_cast<std::int64_t>(groups_of(s)) * (4 * s.state + 2) + 2 * s.state * kSteps;
}

Piece piece_of(const ScanShape& s, void* workspace, std::int64_t index) {
  const std::int64_t groups = groups_of(s), states = groups * s.state;
  Lanes* at = static_cast<Lanes*>(workspace) + index * lanes_of_piece(s);
  const auto take = [&](std::int64_t count) { return std::exchange(at, at + count); };
  Piece w;
  w.dA = take(states);
  w.dD = take(groups);
  w.dbias = take(groups);
  w.a2 = take(states);
  w.q = take(states);
  w.next = take(states);
  w.db = take(s.state * kSteps);
  w.dc = take(s.state * kSteps);
  return w;
}

// Gradients of one state over the block: the state's forward steps again, then back through them.
inline void backward_state(int n, const Lanes& a2, const Lanes& start, Lanes& q, Lanes& dA,
                           Lanes* db, Lanes* dc, Block& k) {
  alignas(64) Lanes a[kSteps], h[kSteps + 1];
  for (int i = 0; i < kLanes; ++i) h[0][i] = start[i];
  for (int t = 0; t < kSteps; ++t) {
    const float b = k.b[t][n];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      a[t][i] = fast_exp2(k.delta[t][i] * a2[i]);
      h[t + 1][i] = a[t][i] * h[t][i] + k.du[t][i] * b;
    }
  }
  for (int t = kSteps - 1; t >= 0; --t) {
    const float b = k.b[t][n], c = k.c[t][n];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const float g = q[i] + c * k.dy[t][i];
      dc[t][i] += k.dy[t][i] * h[t + 1][i];
      db[t][i] += g * k.du[t][i];
      k.s1[t][i] += g * b;
      q[i] = g * a[t][i];
      const float dlog = q[i] * h[t][i];  // d loss / d (delta A)
      k.s2[t][i] += a2[i] * dlog;
      dA[i] += k.delta[t][i] * dlog;
    }
  }
}

// du, ddt and dz of a block, from s1 and s2.
inline void finish_block(const ScanBackward<float>& p, const Group& g, const Block& k,
                         const Lanes& D, Lanes& dD, Lanes& dbias) {
  for (int t = 0; t < k.steps; ++t) {
    alignas(64) Lanes y, du, ddt, dz;
    load(y, p.y + k.row[t] * p.shape.channels + g.channel, g.width);
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const float x = k.x[t][i], slope = select(x > 20.0f, 1.0f, fast_sigmoid(x));
      const float sg = k.sg[t][i];
      du[i] = k.delta[t][i] * k.s1[t][i] + D[i] * k.dy[t][i];
      ddt[i] = (k.u[t][i] * k.s1[t][i] + kLn2 * k.s2[t][i]) * slope;
      dz[i] = k.d_o[t][i] * y[i] * sg * (1.0f + k.z[t][i] * (1.0f - sg));
      dbias[i] += ddt[i];
      dD[i] += k.dy[t][i] * k.u[t][i];
    }
    store(p.du + k.row[t] * p.shape.channels + g.channel, du, g.width);
    store(p.ddt + k.row[t] * p.shape.channels + g.channel, ddt, g.width);
    store(p.dz + k.row[t] * p.in.z_stride + g.channel, dz, g.width);
  }
}

// One direction of one image, all its channels: blocks from the last to the first, and in a block
// the groups in order, so that db and dc are complete when the block is.
FM_SIMD void backward_image(const ScanBackward<float>& p, int chunks, int image, int direction,
                            const Piece& w) {
  const ScanShape& s = p.shape;
  const int groups = groups_of(s), states = groups * s.state;
  Block k;
  set_zero(w.q, states);
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const Steps steps = steps_of(s, chunks, chunk);
    const int blocks = (steps.end - steps.begin + kSteps - 1) / kSteps;
    const auto block_steps = [&](int block) {
      const int begin = steps.begin + block * kSteps;
      return Steps{begin, std::min(begin + kSteps, steps.end)};
    };
    set_zero(w.next, states);
    for (int index = 0; chunk > 0 && index < groups; ++index) {
      const Group g = group_of(s, image, direction, index);
      const int at = index * s.state;
      alignas(64) Lanes delta_sum = {};
      for (int block = blocks - 1; block >= 0; --block) {
        stage(s, p.in, g, block_steps(block), k);
        stage_gradient(p, g, k);
        reverse_only(s.state, w.a2 + at, w.next + at, k);
        add_deltas(k, delta_sum);
      }
      carry(s.state, w.a2 + at, delta_sum, w.q + at, w.next + at);
    }
    for (int block = blocks - 1; block >= 0; --block) {
      const Steps part = block_steps(block);
      set_zero(w.db, s.state * kSteps);
      set_zero(w.dc, s.state * kSteps);
      for (int index = 0; index < groups; ++index) {
        const Group g = group_of(s, image, direction, index);
        const Lanes* start =
            states_of(s, const_cast<void*>(p.states), image, part.begin / kSteps, direction, index);
        alignas(64) Lanes D;
        load(D, p.in.d + g.channel, g.width);
        stage(s, p.in, g, part, k);
        stage_gradient(p, g, k);
        set_zero(k.s1, kSteps);
        set_zero(k.s2, kSteps);
        for (int n = 0; n < s.state; ++n) {
          const int at = index * s.state + n;
          backward_state(n, w.a2[at], start[n], w.q[at], w.dA[at], w.db + n * kSteps,
                         w.dc + n * kSteps, k);
        }
        finish_block(p, g, k, D, w.dD[index], w.dbias[index]);
      }
      for (int t = 0; t < part.end - part.begin; ++t) {
        const std::int64_t at = row_of(s, image, direction, part.begin + t) * p.in.bc_stride +
                                direction * p.in.bc_direction;
        for (int n = 0; n < s.state; ++n) {
          float db = 0, dc = 0;
#pragma omp simd reduction(+ : db, dc)
          for (int i = 0; i < kLanes; ++i) {
            db += w.db[n * kSteps + t][i];
            dc += w.dc[n * kSteps + t][i];
          }
          p.db[at + n] = db;
          p.dc[at + n] = dc;
        }
      }
    }
    std::copy_n(&w.next[0][0], static_cast<std::int64_t>(states) * kLanes, &w.q[0][0]);
  }
}

int slices_of(const ScanShape& s) {
  return std::min(s.batch, kSlices);
}

}  // namespace

std::size_t fast_states_bytes(const ScanShape& s) {
  return sizeof(Lanes) * static_cast<std::size_t>(s.batch) * blocks_of(s) * s.directions *
         groups_of(s) * s.state;
}

std::size_t fast_backward_workspace(const ScanShape& s) {
  return sizeof(Lanes) * static_cast<std::size_t>(lanes_of_piece(s)) * slices_of(s) * s.directions;
}

void fast_forward(CpuQueue& queue, const ScanForward<float>& p, int chunks) {
  const ScanShape& s = p.shape;
  const std::int64_t groups = groups_of(s), lines = s.directions * groups;
  parallel_for(queue, s.batch * lines, 1, [&](std::int64_t piece, std::int64_t) {
    forward_group(p, chunks, static_cast<int>(piece / lines),
                  static_cast<int>(piece % lines / groups), static_cast<int>(piece % groups));
  });
}

void fast_backward(CpuQueue& queue, const ScanBackward<float>& p, int chunks) {
  const ScanShape& s = p.shape;
  const int slices = slices_of(s), groups = groups_of(s);
  parallel_for(queue, slices * s.directions, 1, [&](std::int64_t index, std::int64_t) {
    const std::int64_t slice = index / s.directions, batch = s.batch;
    const int direction = static_cast<int>(index % s.directions);
    const Piece w = piece_of(s, p.workspace, index);
    set_zero(w.dA, groups * (s.state + 2));
    for (int g = 0; g < groups; ++g)
      load_a2(p.in, s.state, group_of(s, 0, direction, g), w.a2 + g * s.state);
    for (std::int64_t image = slice * batch / slices; image < (slice + 1) * batch / slices; ++image)
      backward_image(p, chunks, static_cast<int>(image), direction, w);
  });
  parallel_for(queue, s.directions * groups, 1, [&](std::int64_t line, std::int64_t) {
    const int direction = static_cast<int>(line / groups), index = static_cast<int>(line % groups);
    const Group g = group_of(s, 0, direction, index);
    const Lanes* a2 = piece_of(s, p.workspace, direction).a2 + index * s.state;
    for (int i = 0; i < g.width; ++i) {
      const std::int64_t channel = g.channel + i;
      p.dd[channel] = p.ddt_bias[channel] = 0;
      for (int n = 0; n < s.state; ++n) p.da_log[channel * s.state + n] = 0;
      for (int slice = 0; slice < slices; ++slice) {
        const Piece w = piece_of(s, p.workspace, slice * s.directions + direction);
        p.dd[channel] += w.dD[index][i];
        p.ddt_bias[channel] += w.dbias[index][i];
        for (int n = 0; n < s.state; ++n)
          p.da_log[channel * s.state + n] += w.dA[index * s.state + n][i];
      }
      for (int n = 0; n < s.state; ++n)  // dA / dA_log = A
        p.da_log[channel * s.state + n] *= kLn2 * a2[n][i];
    }
  });
}

}  // namespace fm::scan
