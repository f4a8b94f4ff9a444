#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/selective_scan/selective_scan_lanes.h"

namespace fm::scan_cpu {
namespace {

// h of every state runs over the block; C h is added to y.
inline void advance(int state, const Lanes* a2, Lanes* h, const Block& k, Lanes* y) {
  for (int n = 0; n < state; ++n) {
    const Lanes a2_n = a2[n];
    Lanes h_n = h[n];
    for (int t = 0; t < kSteps; ++t) {
      Lanes a = k.delta[t] * a2_n;
      exp2_lanes(a);
      h_n = a * h_n + k.du[t] * k.b[t][n];
      y[t] += h_n * k.c[t][n];
    }
    h[n] = h_n;
  }
}

// The block's results in token order.
inline void store_block(const Group& g, const Block& k, int channels, const Lanes* from,
                        float* to) {
  for (int t = 0; t < k.steps; ++t) store(to + k.row[t] * channels + g.channel, from[t], g.width);
}

// The gate, and what it makes of y.
inline void finish(const ScanForward<float>& p, const Group& g, const Block& k, const Lanes* y) {
  if (!p.in.z) return store_block(g, k, p.shape.channels, y, p.o);
  Lanes z[kSteps] = {}, o[kSteps];
  for (int t = 0; t < k.steps; ++t)
    load(z[t], p.in.z + k.row[t] * p.in.z_stride + g.channel, g.width);
  const float *z_at = elements(z), *y_at = elements(y);
  float* o_at = elements(o);
#pragma omp simd
  for (int i = 0; i < kSteps * kLanes; ++i) o_at[i] = y_at[i] * z_at[i] * fast_sigmoid(z_at[i]);
  store_block(g, k, p.shape.channels, o, p.o);
  if (p.y) store_block(g, k, p.shape.channels, y, p.y);
}

// The chunks run one after another: see forward_channel of the reference.
FM_SIMD void forward_group(const ScanForward<float>& p, int chunks, const Group& g) {
  const ScanShape& s = p.shape;
  Lanes a2[kMaxState], h[kMaxState], next[kMaxState], y[kSteps], D;
  Block k;
  load_a2(p.in, s.state, g, a2);
  load(D, p.in.d + g.channel, g.width);
  std::fill_n(h, s.state, Lanes{});
  std::fill_n(next, s.state, Lanes{});
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Steps steps = steps_of(s, chunks, chunk);
    if (chunk + 1 < chunks) {
      Lanes delta_sum = {};
      std::fill_n(next, s.state, Lanes{});
      for (int t = steps.begin; t < steps.end; t += kSteps) {
        stage(s, p.in, g, {t, std::min(t + kSteps, steps.end)}, k);
        std::fill_n(y, kSteps, Lanes{});
        advance(s.state, a2, next, k, y);
        add_deltas(k, delta_sum);
      }
      carry(s.state, a2, delta_sum, h, next);
    }
    for (int t = steps.begin; t < steps.end; t += kSteps) {
      stage(s, p.in, g, {t, std::min(t + kSteps, steps.end)}, k);
      if (p.states) std::copy_n(h, s.state, static_cast<Lanes*>(p.states) + state_at(s, g, t));
      for (int j = 0; j < kSteps; ++j) y[j] = D * k.u[j];
      advance(s.state, a2, h, k, y);
      finish(p, g, k, y);
    }
    std::copy_n(next, s.state, h);
  }
}

}  // namespace

std::size_t fast_states_bytes(const ScanShape& s) {
  return sizeof(Lanes) * static_cast<std::size_t>(s.batch) * blocks_of(s) * s.directions *
         groups_of(s) * s.state;
}

void fast_forward(CpuQueue& queue, const ScanForward<float>& p, int chunks) {
  const ScanShape& s = p.shape;
  const std::int64_t groups = groups_of(s), lines = s.directions * groups;
  parallel_for(queue, s.batch * lines, 1, [&](std::int64_t piece, std::int64_t) {
    forward_group(
        p, chunks,
        group_of(s, static_cast<int>(piece / lines), static_cast<int>(piece % lines / groups),
                 static_cast<int>(piece % groups)));
  });
}

}  // namespace fm::scan_cpu
