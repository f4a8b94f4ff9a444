// Where swiglu_linear has no kernel (the CPU, float), its rows time what it fuses.
#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu_linear/swiglu_linear_cases.h"

namespace fm {
namespace {

template <class T, class Q>
constexpr bool kFused = std::is_same_v<Q, CudaQueue> && sizeof(T) == 2;

template <class T>
struct Operands {
  const T *x, *w12, *bias;

  Operands(BenchArrays& a, const SwigluLinearShape& s)
      : x(a.input<T>(s.rows * s.width)),
        w12(a.input<T>(std::int64_t{2} * s.hidden * s.width, {.deviation = 0.1})),
        bias(a.input<T>(2 * s.hidden)) {}

  LinearForward<T, T> product(const SwigluLinearShape& s, T* ab) const {
    return {{.rows = s.rows, .in = s.width, .out = 2 * s.hidden}, x, w12, bias, ab};
  }
};

Call forward(BenchArrays& a, const SwigluLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using Q = std::remove_reference_t<decltype(queue)>;
    const Operands<T> in(a, s);
    T* const h = a.output<T>("h", s.rows * s.hidden);
    if constexpr (kFused<T, Q>) {
      const SwigluLinearForward<T> p{s, in.x, in.w12, in.bias, h};
      return [&queue, p] { swiglu_linear_forward(queue, p); };
    } else {
      T* const ab = a.scratch<T>(2 * s.rows * s.hidden);
      const LinearForward<T, T> product = in.product(s, ab);
      const SwigluForward<T> gates{{s.rows, s.hidden}, ab, h};
      return [&queue, product, gates] {
        linear_forward(queue, product);
        swiglu_forward(queue, gates);
      };
    }
  });
}

Call backward(BenchArrays& a, const SwigluLinearShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using Q = std::remove_reference_t<decltype(queue)>;
    const Operands<T> in(a, s);
    const T* const w3 = a.input<T>(std::int64_t{1} * s.width * s.hidden, {.deviation = 0.1});
    const T* const dy = a.input<T>(s.rows * s.width);
    T* const dab = a.output<T>("dab", 2 * s.rows * s.hidden);
    T* const h = a.output<T>("h", s.rows * s.hidden);
    if constexpr (kFused<T, Q>) {
      const SwigluLinearBackward<T> p{s, in.x, in.w12, in.bias, w3, dy, dab, h};
      return [&queue, p] { swiglu_linear_backward(queue, p); };
    } else {
      const LinearForward<T, T> product = in.product(s, dab);
      const LinearBackwardInput<T> units{
          {.rows = s.rows, .in = s.hidden, .out = s.width}, dy, w3, h};
      const SwigluBackward<T> gates{{s.rows, s.hidden}, dab, h, dab, h};
      return [&queue, product, units, gates] {
        linear_forward(queue, product);
        linear_backward_input(queue, units);
        swiglu_backward(queue, gates);
      };
    }
  });
}

}  // namespace

void bench_swiglu_linear(BenchList& list) {
  SwigluLinearShape timed = kSwigluLinearPaper;
  timed.rows = list.scaled(timed.rows);
  SwigluLinearShape checked = timed;
  checked.rows = std::min<std::int64_t>(timed.rows, 1009);
  const std::string shape = concat("rows", timed.rows, " ", timed.width, ">2x", timed.hidden);
  list.add("swiglu_linear", "forward", shape, kSwigluLinearTolerance,
           swiglu_linear_forward_work(timed, list.compute), forward, checked, timed);
  list.add("swiglu_linear", "backward", shape, kSwigluLinearTolerance,
           swiglu_linear_backward_work(timed, list.compute), backward, checked, timed);
}

}  // namespace fm
