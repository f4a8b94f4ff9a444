#include <cmath>

#include "apps/bench/kernel_bench.h"
#include "kernels/selective_scan/selective_scan_cases.h"

namespace fm {
namespace {

std::int64_t tokens(const ScanShape& s) {
  return std::int64_t{s.batch} * s.length;
}
std::int64_t columns(const ScanCase& c) {  // of a direction in the matrix that holds b and c
  return c.rank + 2 * c.shape.state;
}

// As the model lays them out: z is the right half of a product, b and c columns after dt's. In
// training the gate is its reader's part.
template <class T>
ScanInputs<T> inputs(BenchArrays& a, const ScanCase& c, bool gated) {
  const ScanShape& s = c.shape;
  std::vector<float> a_log;  // A is -1 to -n
  for (int channel = 0; channel < s.channels; ++channel)
    for (int n = 1; n <= s.state; ++n) a_log.push_back(std::log(static_cast<float>(n)));
  const T* const bc = a.input<T>(tokens(s) * s.directions * columns(c)) + c.rank;
  return {.u = a.input<T>(tokens(s) * s.channels),
          .dt = a.input<T>(tokens(s) * s.channels, {.deviation = 0.5}),
          .z = gated ? a.input<T>(tokens(s) * 2 * s.channels) + s.channels : nullptr,
          .b = bc,
          .c = bc + s.state,
          .u_stride = s.channels,
          .dt_stride = s.channels,
          .z_stride = gated ? 2 * s.channels : 0,
          .bc_stride = s.directions * columns(c),
          .bc_direction = columns(c),
          .a_log = a.wide_values<T>(a_log),
          .d = a.wide_input<T>(s.channels, {.deviation = 0.5, .mean = 1}),
          .dt_bias = a.wide_input<T>(s.channels, {.mean = -4})};  // delta 0.002 to 0.1
}

// In training the states are written for the backward pass.
Call forward(BenchArrays& a, const ScanCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ScanShape& s = c.shape;
    const ScanForward<T> p{s,
                           inputs<T>(a, c, false),
                           a.output<T>("y", tokens(s) * s.channels),
                           nullptr,
                           a.workspace(scan_states_bytes<T>(queue, s)),
                           a.workspace(scan_forward_workspace<T>(queue, s))};
    return [&queue, p] { scan_forward(queue, p); };
  });
}

Call inference(BenchArrays& a, const ScanCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ScanShape& s = c.shape;
    const ScanForward<T> p{s,
                           inputs<T>(a, c, true),
                           a.output<T>("o", tokens(s) * s.channels),
                           nullptr,
                           nullptr,
                           a.workspace(scan_forward_workspace<T>(queue, s))};
    return [&queue, p] { scan_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const ScanCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ScanShape& s = c.shape;
    const std::int64_t count = tokens(s) * s.channels;
    const ScanForward<T> saved{s,
                               inputs<T>(a, c, false),
                               a.scratch<T>(count),
                               nullptr,
                               a.workspace(scan_states_bytes<T>(queue, s)),
                               a.workspace(scan_forward_workspace<T>(queue, s))};
    scan_forward(queue, saved);
    T* const dbc =
        a.output<T>("db and dc", Rows{tokens(s) * s.directions, 2 * s.state, columns(c)});
    const ScanBackward<T> p{
        .shape = s,
        .in = saved.in,
        .y = nullptr,
        .states = saved.states,
        .d_o = a.input<T>(count),
        .du = a.output<T>("du", count),
        .ddt = a.output<T>("ddt", count),
        .dz = nullptr,
        .db = dbc,
        .dc = dbc + s.state,
        .da_log = a.output<acc_t<T>>("da_log", std::int64_t{s.channels} * s.state),
        .dd = a.output<acc_t<T>>("dd", s.channels),
        .ddt_bias = a.output<acc_t<T>>("ddt_bias", s.channels),
        .workspace = a.workspace(scan_backward_workspace<T>(queue, s))};
    return [&queue, p] {
      scan_backward(queue, p);
      scan_backward_parameters(queue, p);
    };
  });
}

// `checked` takes the path that the timed shape takes: chunked where the sequence is long.
void add(BenchList& list, const ScanCase& timed, bool sampling) {
  const ScanShape& s = timed.shape;
  ScanCase checked{{2, 197, 32, s.state, 2}, 8};
  if (s.length > 1000) checked = {{1, 1000, 16, s.state, 2, 3}, 8};
  const std::string shape = concat("b", s.batch, " d", s.channels, " L", s.length, " n", s.state);
  list.add("selective_scan", "forward", shape, kScanTolerance,
           scan_forward_work(s, list.compute, false), forward, checked, timed);
  list.add("selective_scan", "backward", shape, kScanGradientTolerance,
           scan_backward_work(s, list.compute), backward, checked, timed);
  if (sampling)
    list.add("selective_scan", "inference", shape, kScanTolerance,
             scan_forward_work(s, list.compute, true), inference, checked, timed);
}

}  // namespace

void bench_selective_scan(BenchList& list) {
  ScanCase paper = kScanPaper;
  paper.shape.batch = list.scaled(paper.shape.batch);
  add(list, paper, true);
  if (!list.more_shapes) return;
  for (const ScanCase& test : kScanTimed) add(list, test, false);
}

}  // namespace fm
