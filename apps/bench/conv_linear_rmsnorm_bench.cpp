#include "apps/bench/kernel_bench.h"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm_cases.h"

namespace fm {
namespace {

Call forward(BenchArrays& a, const ConvLinearRmsNormCase& c) {
  return a.typed([&]<class T>(auto& queue) {
    const ConvShape& conv = c.conv.shape;
    const LinearRmsNormShape& s = c.layer;
    const std::int64_t outputs = s.rows * s.groups * s.out();
    T* const u = a.output<T>("u", s.rows * conv.channels);
    ConvLinearRmsNormForward<T> p{
        .conv = {.shape = conv,
                 .x = a.input<T>(s.rows * c.conv.x_stride),
                 .x_stride = c.conv.x_stride,
                 .weight =
                     a.wide_input<T>(std::int64_t{conv.channels} * conv.width, {.deviation = 0.5}),
                 .bias = a.wide_input<T>(conv.channels),
                 .u = u},
        .layer = {.shape = s,
                  .x = u,
                  .w = a.input<T>(std::int64_t{s.groups} * s.out() * s.in, {.deviation = 0.06}),
                  .weight = {},
                  .raw = a.output<T>("raw", outputs),
                  .y = a.output<T>("y", outputs)}};
    for (int i = 0; i < s.segments; ++i)
      p.layer.weight[i] = a.wide_input<T>(std::int64_t{s.groups} * s.segment_width[i],
                                          {.deviation = 0.2, .mean = 1});
    return [&queue, p] { conv_linear_rmsnorm_forward(queue, p); };
  });
}

ConvLinearRmsNormCase of_batch(int batch) {
  ConvLinearRmsNormCase c = kConvLinearRmsNormPaper;
  c.conv.shape.batch = batch;
  c.layer.rows = std::int64_t{batch} * c.conv.shape.length;
  return c;
}

}  // namespace

void bench_conv_linear_rmsnorm(BenchList& list) {
  constexpr int kChecked = 100;  // images: enough rows for the fused kernel
  const ConvLinearRmsNormCase timed =
      of_batch(list.scaled(kConvLinearRmsNormPaper.conv.shape.batch));
  const ConvLinearRmsNormCase checked = of_batch(std::min(timed.conv.shape.batch, kChecked));
  const LinearRmsNormShape& s = timed.layer;
  list.add("conv_linear_rmsnorm", "forward",
           concat("rows", s.rows, " ", s.in, ">", s.out(), " g", s.groups, " s", s.segments),
           kConvLinearRmsNormTolerance, conv_linear_rmsnorm_work(timed, list.compute), forward,
           checked, timed);
}

}  // namespace fm
