#include "apps/bench/kernel_bench.h"
#include "kernels/flow/flow_cases.h"

namespace fm {
namespace {

std::int64_t pixels(const FlowShape& s) {
  return s.batch * s.pixels;
}

Call batch(BenchArrays& a, const FlowShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    std::vector<std::uint8_t> images(static_cast<std::size_t>(s.images * s.pixels));
    for (std::size_t i = 0; i < images.size(); ++i)
      images[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24);
    const FlowBatch<R> p{.batch = s.batch,
                         .images = s.images,
                         .pixels = s.pixels,
                         .data = a.values(images),
                         .labels = nullptr,
                         .state = a.values(std::vector<StepState>(1)),
                         .seed = 7,
                         .time_sampling = TimeSampling::uniform,
                         .classes = 0,
                         .label_drop = 0,
                         .x_t = a.output<R>("x_t", pixels(s)),
                         .target = a.output<R>("target", pixels(s)),
                         .t = a.output<R>("t", s.batch),
                         .batch_labels = nullptr};
    return [&queue, p] { flow_batch(queue, p); };
  });
}

Call interpolate(BenchArrays& a, const FlowShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    const FlowInterpolate<R> p{s.batch,
                               s.pixels,
                               a.wide_input<T>(pixels(s)),
                               a.wide_input<T>(pixels(s)),
                               a.wide_input<T>(s.batch, {.deviation = 0.1, .mean = 0.5}),
                               a.output<R>("x_t", pixels(s)),
                               a.output<R>("target", pixels(s))};
    return [&queue, p] { flow_interpolate(queue, p); };
  });
}

Call loss_forward(BenchArrays& a, const FlowShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const FlowLossForward<acc_t<T>> p{pixels(s), a.wide_input<T>(pixels(s)),
                                      a.wide_input<T>(pixels(s)), a.output<acc_t<T>>("loss", 1),
                                      a.workspace(flow_loss_workspace(pixels(s)))};
    return [&queue, p] { flow_loss_forward(queue, p); };
  });
}

Call loss_backward(BenchArrays& a, const FlowShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const FlowLossBackward<acc_t<T>> p{pixels(s), a.wide_input<T>(pixels(s)),
                                       a.wide_input<T>(pixels(s)), nullptr,
                                       a.output<acc_t<T>>("dv", pixels(s))};
    return [&queue, p] { flow_loss_backward(queue, p); };
  });
}

}  // namespace

void bench_flow(BenchList& list) {
  const FlowShape checked = kFlowCases[3];
  FlowShape timed = kFlowPaper;
  timed.batch = list.scaled(timed.batch);
  const std::string shape = concat("b", timed.batch, " px", timed.pixels);
  const auto add = [&](const char* call, const Work& work,
                       Call (*make)(BenchArrays&, const FlowShape&)) {
    list.add("flow", call, shape, in_float(kFlowTolerance), work, make, checked, timed);
  };
  add("batch", flow_batch_work(timed), batch);
  add("interpolate", flow_interpolate_work(timed), interpolate);
  add("loss forward", flow_loss_forward_work(pixels(timed)), loss_forward);
  add("loss backward", flow_loss_backward_work(pixels(timed)), loss_backward);
}

}  // namespace fm
