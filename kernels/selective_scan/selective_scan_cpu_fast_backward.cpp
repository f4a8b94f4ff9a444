#include <utility>

#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/selective_scan/selective_scan_lanes.h"

namespace fm::scan_cpu {
namespace {

// Images are shared out to this many pieces a direction at most, each with its own sums: enough for
// any machine's cores, and a workspace that does not grow with the batch.
constexpr int kSlices = 64;

// A block with what comes back through the gate.
struct GradientBlock : Block {
  Lanes d_o[kSteps], z[kSteps];
  Lanes sg[kSteps];              // sigmoid(z)
  Lanes dy[kSteps];              // d_o silu(z), or d_o
  Lanes s1[kSteps], s2[kSteps];  // sums over n of g B and of a2 dlog
};

// What a piece works in, for one direction. The first three are sums over its images; the others
// serve one image at a time.
struct Piece {
  Lanes *dA, *dD, *dbias;  // [groups][n], [groups], [groups]
  Lanes *a2, *q, *next;    // [groups][n]
  Lanes *db, *dc;          // [n][step]: the lanes' parts of db and dc of a block
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

int slices_of(const ScanShape& s) {
  return std::min(s.batch, kSlices);
}

inline void stage_gradient(const ScanBackward<float>& p, const Group& g, Steps steps,
                           GradientBlock& k) {
  stage(p.shape, p.in, g, steps, k);
  for (int t = 0; t < kSteps; ++t) {
    load(k.d_o[t], p.d_o + k.row[t] * p.shape.channels + g.channel, g.width);
    k.dy[t] = k.d_o[t];
  }
  if (p.in.z) {
    for (int t = 0; t < kSteps; ++t)
      load(k.z[t], p.in.z + k.row[t] * p.in.z_stride + g.channel, g.width);
    const float* z = elements(k.z);
    float* sg = elements(k.sg);
#pragma omp simd
    for (int i = 0; i < kSteps * kLanes; ++i) sg[i] = fast_sigmoid(z[i]);
    for (int t = 0; t < kSteps; ++t) k.dy[t] = k.d_o[t] * k.z[t] * k.sg[t];
  }
  std::fill_n(k.dy + k.steps, kSteps - k.steps, Lanes{});
}

// q of every state runs back over the block; nothing else is wanted.
inline void reverse_only(int state, const Lanes* a2, Lanes* q, const GradientBlock& k) {
  for (int n = 0; n < state; ++n) {
    const Lanes a2_n = a2[n];
    Lanes q_n = q[n];
    for (int t = kSteps - 1; t >= 0; --t) {
      Lanes a = k.delta[t] * a2_n;
      exp2_lanes(a);
      q_n = (q_n + k.dy[t] * k.c[t][n]) * a;
    }
    q[n] = q_n;
  }
}

// One state over the block: its forward steps again from the saved state, then back through them.
inline void backward_state(int n, const Lanes& a2, const Lanes& start, Lanes& q, Lanes& dA,
                           Lanes* db, Lanes* dc, GradientBlock& k) {
  Lanes a[kSteps], h[kSteps + 1];  // h[t] is the state before step t
  h[0] = start;
  for (int t = 0; t < kSteps; ++t) {
    a[t] = k.delta[t] * a2;
    exp2_lanes(a[t]);
    h[t + 1] = a[t] * h[t] + k.du[t] * k.b[t][n];
  }
  Lanes q_n = q, dA_n = dA;
  for (int t = kSteps - 1; t >= 0; --t) {
    const Lanes g = q_n + k.dy[t] * k.c[t][n];
    dc[t] += k.dy[t] * h[t + 1];
    db[t] += g * k.du[t];
    k.s1[t] += g * k.b[t][n];
    q_n = g * a[t];
    const Lanes dlog = q_n * h[t];  // d loss / d (delta A)
    k.s2[t] += a2 * dlog;
    dA_n += k.delta[t] * dlog;
  }
  q = q_n;
  dA = dA_n;
}

// du, ddt and dz of a block from s1 and s2, and the sums dD and dbias.
inline void finish(const ScanBackward<float>& p, const Group& g, const GradientBlock& k, Lanes& dD,
                   Lanes& dbias) {
  Lanes slope[kSteps], D;
  const float* x = elements(k.x);
  float* slope_at = elements(slope);
#pragma omp simd
  for (int i = 0; i < kSteps * kLanes; ++i)
    slope_at[i] = select(x[i] > 20.0f, 1.0f, fast_sigmoid(x[i]));
  load(D, p.in.d + g.channel, g.width);
  for (int t = 0; t < k.steps; ++t) {
    const std::int64_t at = k.row[t] * p.shape.channels + g.channel;
    const Lanes ddt = (k.u[t] * k.s1[t] + kLn2 * k.s2[t]) * slope[t];
    dbias += ddt;
    dD += k.dy[t] * k.u[t];
    store(p.ddt + at, ddt, g.width);
    store(p.du + at, k.delta[t] * k.s1[t] + D * k.dy[t], g.width);
    if (!p.in.z) continue;
    Lanes y;
    load(y, p.y + at, g.width);
    store(p.dz + k.row[t] * p.in.z_stride + g.channel,
          k.d_o[t] * y * k.sg[t] * (1.0f + k.z[t] * (1.0f - k.sg[t])), g.width);
  }
}

// One block of all channels of a direction, the groups in order: db and dc are complete after it.
inline void backward_block(const ScanBackward<float>& p, int image, int direction, Steps steps,
                           const Piece& w) {
  const ScanShape& s = p.shape;
  GradientBlock k;
  std::fill_n(w.db, s.state * kSteps, Lanes{});
  std::fill_n(w.dc, s.state * kSteps, Lanes{});
  for (int index = 0; index < groups_of(s); ++index) {
    const Group g = group_of(s, image, direction, index);
    const Lanes* start = static_cast<const Lanes*>(p.states) + state_at(s, g, steps.begin);
    stage_gradient(p, g, steps, k);
    std::fill_n(k.s1, kSteps, Lanes{});
    std::fill_n(k.s2, kSteps, Lanes{});
    for (int n = 0; n < s.state; ++n) {
      const int at = index * s.state + n;
      backward_state(n, w.a2[at], start[n], w.q[at], w.dA[at], w.db + n * kSteps, w.dc + n * kSteps,
                     k);
    }
    finish(p, g, k, w.dD[index], w.dbias[index]);
  }
  for (int t = 0; t < k.steps; ++t) {
    const std::int64_t at = k.row[t] * p.in.bc_stride + direction * p.in.bc_direction;
    for (int n = 0; n < s.state; ++n) {
      const float *db = elements(w.db + n * kSteps + t), *dc = elements(w.dc + n * kSteps + t);
      float db_sum = 0, dc_sum = 0;
      for (int i = 0; i < kLanes; ++i) {
        db_sum += db[i];
        dc_sum += dc[i];
      }
      p.db[at + n] = db_sum;
      p.dc[at + n] = dc_sum;
    }
  }
}

// One direction of one image, from the last block to the first.
FM_SIMD void backward_image(const ScanBackward<float>& p, int chunks, int image, int direction,
                            const Piece& w) {
  const ScanShape& s = p.shape;
  const int groups = groups_of(s), states = groups * s.state;
  std::fill_n(w.q, states, Lanes{});
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const Steps steps = steps_of(s, chunks, chunk);
    const int blocks = (steps.end - steps.begin + kSteps - 1) / kSteps;
    const auto block_steps = [&](int block) {
      const int begin = steps.begin + block * kSteps;
      return Steps{begin, std::min(begin + kSteps, steps.end)};
    };
    std::fill_n(w.next, states, Lanes{});
    for (int index = 0; chunk > 0 && index < groups; ++index) {
      const Group g = group_of(s, image, direction, index);
      const int at = index * s.state;
      Lanes delta_sum = {};
      GradientBlock k;
      for (int block = blocks - 1; block >= 0; --block) {
        stage_gradient(p, g, block_steps(block), k);
        reverse_only(s.state, w.a2 + at, w.next + at, k);
        add_deltas(k, delta_sum);
      }
      carry(s.state, w.a2 + at, delta_sum, w.q + at, w.next + at);
    }
    for (int block = blocks - 1; block >= 0; --block)
      backward_block(p, image, direction, block_steps(block), w);
    std::copy_n(w.next, states, w.q);
  }
}

// The gradients of a group's parameters: the slices' sums in order, and dA / dA_log = A.
void sum_slices(const ScanBackward<float>& p, const Group& g) {
  const ScanShape& s = p.shape;
  const int slices = slices_of(s), first = g.index * s.state;
  for (int i = 0; i < g.width; ++i) {
    const std::int64_t channel = g.channel + i;
    float* da_log = p.da_log + channel * s.state;
    float dD = 0, dbias = 0;
    std::fill_n(da_log, s.state, 0.0f);
    for (int slice = 0; slice < slices; ++slice) {
      const Piece w = piece_of(s, p.workspace, slice * s.directions + g.direction);
      dD += w.dD[g.index][i];
      dbias += w.dbias[g.index][i];
      for (int n = 0; n < s.state; ++n) da_log[n] += w.dA[first + n][i];
    }
    const Lanes* a2 = piece_of(s, p.workspace, g.direction).a2 + first;
    for (int n = 0; n < s.state; ++n) da_log[n] *= kLn2 * a2[n][i];
    p.dd[channel] = dD;
    p.ddt_bias[channel] = dbias;
  }
}

}  // namespace

std::size_t fast_backward_workspace(const ScanShape& s) {
  return sizeof(Lanes) * static_cast<std::size_t>(lanes_of_piece(s)) * slices_of(s) * s.directions;
}

void fast_backward(CpuQueue& queue, const ScanBackward<float>& p, int chunks) {
  const ScanShape& s = p.shape;
  const int slices = slices_of(s), groups = groups_of(s);
  parallel_for(queue, slices * s.directions, 1, [&](std::int64_t index, std::int64_t) {
    const std::int64_t slice = index / s.directions, batch = s.batch;
    const int direction = static_cast<int>(index % s.directions);
    const Piece w = piece_of(s, p.workspace, index);
    std::fill_n(w.dA, groups * s.state, Lanes{});
    std::fill_n(w.dD, groups, Lanes{});
    std::fill_n(w.dbias, groups, Lanes{});
    for (int i = 0; i < groups; ++i)
      load_a2(p.in, s.state, group_of(s, 0, direction, i), w.a2 + i * s.state);
    for (std::int64_t image = slice * batch / slices; image < (slice + 1) * batch / slices; ++image)
      backward_image(p, chunks, static_cast<int>(image), direction, w);
  });
  parallel_for(queue, s.directions * groups, 1, [&](std::int64_t line, std::int64_t) {
    sum_slices(p, group_of(s, 0, static_cast<int>(line / groups), static_cast<int>(line % groups)));
  });
}

}  // namespace fm::scan_cpu
