#include "apps/bench/kernel_bench.h"
#include "kernels/causal_conv1d/causal_conv1d_cases.h"

namespace fm {
namespace {

std::int64_t tokens(const ConvShape& s) {
  return std::int64_t{s.batch} * s.length;
}

Call forward(BenchArrays& a, const ConvCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ConvShape& s = c.shape;
    const ConvForward<T> p{s,
                           a.input<T>(tokens(s) * c.x_stride),
                           c.x_stride,
                           a.wide_input<T>(std::int64_t{s.channels} * s.width, {.deviation = 0.5}),
                           a.wide_input<T>(s.channels),
                           a.output<T>("u", tokens(s) * s.channels)};
    return [&queue, p] { conv_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const ConvCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ConvShape& s = c.shape;
    const std::int64_t weights = std::int64_t{s.channels} * s.width;
    const ConvBackward<T> p{.shape = s,
                            .x = a.input<T>(tokens(s) * c.x_stride),
                            .x_stride = c.x_stride,
                            .weight = a.wide_input<T>(weights, {.deviation = 0.5}),
                            .bias = a.wide_input<T>(s.channels),
                            .du = a.input<T>(tokens(s) * s.channels),
                            .dx = a.output<T>("dx", Rows{tokens(s), s.channels, c.x_stride}),
                            .dweight = a.output<acc_t<T>>("dweight", weights),
                            .dbias = a.output<acc_t<T>>("dbias", s.channels),
                            .workspace = a.workspace(conv_backward_workspace<T>(s))};
    return [&queue, p] { conv_backward(queue, p); };
  });
}

}  // namespace

void bench_causal_conv1d(BenchList& list) {
  ConvCase timed = kConvPaper;
  timed.shape.batch = list.scaled(timed.shape.batch);
  ConvCase checked = kConvPaper;
  checked.shape.batch = 3;
  const ConvShape& s = timed.shape;
  const std::string shape = concat("b", s.batch, " d", s.channels, " L", s.length, " w", s.width);
  list.add("causal_conv1d", "forward", shape, kConvTolerance, conv_forward_work(s, list.compute),
           forward, checked, timed);
  list.add("causal_conv1d", "backward", shape, kConvTolerance, conv_backward_work(s, list.compute),
           backward, checked, timed);
}

}  // namespace fm
