#include "apps/bench/kernel_bench.h"
#include "kernels/residual_norm/residual_norm_cases.h"

namespace fm {
namespace {

std::int64_t elements(const ResidualNormShape& s) {
  return std::int64_t{s.batch} * s.length * s.width;
}

// With the residual stream in acc_t<T>.
Call forward(BenchArrays& a, const ResidualNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using X = acc_t<T>;
    const T* const modulation = a.input<T>(s.batch * s.modulation_stride);
    const ResidualNormForward<T, X> p{.shape = s,
                                      .x = a.wide_input<T>(elements(s)),
                                      .f = a.input<T>(elements(s)),
                                      .gate = a.input<T>(s.batch * s.gate_stride),
                                      .shift = modulation,
                                      .scale = modulation + s.width,
                                      .out = a.output<X>("out", elements(s)),
                                      .y = a.output<T>("y", elements(s))};
    return [&queue, p] { residual_norm_forward(queue, p); };
  });
}

// dx is added to, as everywhere but behind the last norm.
Call backward(BenchArrays& a, const ResidualNormShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using X = acc_t<T>;
    T* const modulation =
        a.output<T>("dshift and dscale", Rows{s.batch, 2 * s.width, s.modulation_stride});
    const ResidualNormBackward<T, X> p{
        .shape = s,
        .out = a.wide_input<T>(elements(s)),
        .f = a.input<T>(elements(s)),
        .gate = a.input<T>(s.batch * s.gate_stride),
        .scale = a.input<T>(s.batch * s.modulation_stride),
        .dy = a.input<T>(elements(s)),
        .dx = a.wide_inout<T>("dx", elements(s)),
        .accumulate = true,
        .df = a.output<T>("df", elements(s)),
        .dgate = a.output<T>("dgate", Rows{s.batch, s.width, s.gate_stride}),
        .dshift = modulation,
        .dscale = modulation + s.width};
    return [&queue, p] { residual_norm_backward(queue, p); };
  });
}

}  // namespace

void bench_residual_norm(BenchList& list) {
  ResidualNormShape timed = kResidualNormPaper;
  timed.batch = list.scaled(timed.batch);
  ResidualNormShape checked = timed;
  checked.batch = 3;
  const DType stream = acc_dtype(list.compute);
  const std::string shape = concat("b", timed.batch, " L", timed.length, " d", timed.width);
  list.add("residual_norm", "forward", shape, kResidualNormTolerance,
           residual_norm_forward_work(timed, list.compute, stream), forward, checked, timed);
  list.add("residual_norm", "backward", shape, kResidualNormTolerance,
           residual_norm_backward_work(timed, list.compute, stream), backward, checked, timed);
}

}  // namespace fm
