// Where swiglu_mlp and swiglu_few_rows have no kernel (the CPU, float, other devices), their rows
// time what they fuse.
#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu/swiglu_few_rows.h"
#include "kernels/swiglu_mlp/swiglu_mlp_cases.h"

namespace fm {
namespace {

template <class T, class Q>
bool fits([[maybe_unused]] const Q& queue, [[maybe_unused]] const SwigluMlpShape& s) {
  if constexpr (std::is_same_v<Q, CudaQueue>) return swiglu_mlp_fits(queue, s, dtype_of<T>());
  else return false;
}

template <class T>
struct Operands {
  LinearShape first, second;
  const T *x, *w12, *b12, *w3;

  Operands(BenchArrays& a, const SwigluMlpShape& s)
      : first{.rows = s.rows, .in = s.width, .out = 2 * s.hidden},
        second{.rows = s.rows, .in = s.hidden, .out = s.width},
        x(a.input<T>(s.rows * s.width)),
        w12(a.input<T>(std::int64_t{2} * s.hidden * s.width, {.deviation = 0.1})),
        b12(a.input<T>(2 * s.hidden)),
        w3(a.input<T>(std::int64_t{1} * s.width * s.hidden, {.deviation = 0.1})) {}
};

Call forward(BenchArrays& a, const SwigluMlpShape& s) {
  return a.typed([&]<class T, class Q>(Q& queue) -> Call {
    const Operands<T> in(a, s);
    const T* const b3 = a.input<T>(s.width);
    T* const y = a.output<T>("y", s.rows * s.width);
    if constexpr (std::is_same_v<Q, CudaQueue> && sizeof(T) == 2) {
      if (fits<T>(queue, s)) {
        const SwigluMlpForward<T> p{s, in.x, in.w12, in.b12, in.w3, b3, y};
        return [&queue, p] { swiglu_mlp_forward(queue, p); };
      }
    }
    T* const ab = a.scratch<T>(2 * s.rows * s.hidden);
    T* const h = a.scratch<T>(s.rows * s.hidden);
    const LinearForward<T, T> first{in.first, in.x, in.w12, in.b12, ab};
    const SwigluForward<T> gates{{s.rows, s.hidden}, ab, h};
    const LinearForward<T, T> second{in.second, h, in.w3, b3, y};
    return [&queue, first, gates, second] {
      linear_forward(queue, first);
      swiglu_forward(queue, gates);
      linear_forward(queue, second);
    };
  });
}

Call backward(BenchArrays& a, const SwigluMlpShape& s) {
  return a.typed([&]<class T, class Q>(Q& queue) -> Call {
    const Operands<T> in(a, s);
    const T* const dy = a.input<T>(s.rows * s.width);
    const std::int64_t weights = std::int64_t{1} * s.hidden * s.width;
    T* const dx = a.output<T>("dx", s.rows * s.width);
    using Wide = acc_t<T>;
    Wide* const dw12 = a.output<Wide>("dw12", 2 * weights);
    Wide* const db12 = a.output<Wide>("db12", 2 * s.hidden);
    Wide* const dw3 = a.output<Wide>("dw3", weights);
    Wide* const db3 = a.output<Wide>("db3", s.width);
    if constexpr (std::is_same_v<Q, CudaQueue> && sizeof(T) == 2) {
      if (fits<T>(queue, s)) {
        void* const workspace = a.workspace(swiglu_mlp_backward_workspace(s));
        const SwigluMlpBackward<T> p{s,  in.x, in.w12, in.b12, in.w3, dy,
                                     dx, dw12, db12,   dw3,    db3,   workspace};
        return [&queue, p] { swiglu_mlp_backward(queue, p); };
      }
    }
    T* const ab = a.scratch<T>(2 * s.rows * s.hidden);
    T* const h = a.scratch<T>(s.rows * s.hidden);
    void* const workspace = a.workspace(std::max(linear_backward_weight_workspace(in.first),
                                                 linear_backward_weight_workspace(in.second)));
    const LinearForward<T, T> product{in.first, in.x, in.w12, in.b12, ab};
    const LinearBackwardInput<T> units{in.second, dy, in.w3, h};
    const SwigluBackward<T> gates{{s.rows, s.hidden}, ab, h, ab, h};
    const LinearBackwardWeight<T> second{in.second, dy, h, dw3, db3, workspace};
    const LinearBackwardWeight<T> first{in.first, ab, in.x, dw12, db12, workspace};
    const LinearBackwardInput<T> input{in.first, ab, in.w12, dx};
    return [&queue, product, units, gates, second, first, input] {
      linear_forward(queue, product);
      linear_backward_input(queue, units);
      swiglu_backward(queue, gates);
      linear_backward_weight(queue, second);
      linear_backward_weight(queue, first);
      linear_backward_input(queue, input);
    };
  });
}

// The wide half for one image's tokens, where latency is what counts.
Call few_rows(BenchArrays& a, const SwigluMlpShape& s) {
  return a.typed([&]<class T, class Q>(Q& queue) -> Call {
    const Operands<T> in(a, s);
    T* const h = a.output<T>("h", s.rows * s.hidden);
    if constexpr (std::is_same_v<Q, CudaQueue> && sizeof(T) == 2) {
      if (swiglu_few_rows_fits(s.rows, s.width, s.hidden, dtype_of<T>())) {
        const SwigluFewRows<T> p{s.rows, s.width, s.hidden, in.x, in.w12, in.b12, h};
        return [&queue, p] { swiglu_few_rows(queue, p); };
      }
    }
    T* const ab = a.scratch<T>(2 * s.rows * s.hidden);
    const LinearForward<T, T> product{in.first, in.x, in.w12, in.b12, ab};
    const SwigluForward<T> gates{{s.rows, s.hidden}, ab, h};
    return [&queue, product, gates] {
      linear_forward(queue, product);
      swiglu_forward(queue, gates);
    };
  });
}

}  // namespace

void bench_swiglu_mlp(BenchList& list) {
  SwigluMlpShape timed = kSwigluMlpPaper;
  timed.rows = list.scaled(timed.rows);
  SwigluMlpShape checked = timed;
  checked.rows = std::min<std::int64_t>(timed.rows, 1009);
  const std::string shape =
      concat("rows", timed.rows, " ", timed.width, ">2x", timed.hidden, ">", timed.width);
  list.add("swiglu_mlp", "forward", shape, kSwigluMlpTolerance,
           swiglu_mlp_forward_work(timed, list.compute), forward, checked, timed);
  list.add("swiglu_mlp", "backward", shape, kSwigluMlpTolerance,
           swiglu_mlp_backward_work(timed, list.compute), backward, checked, timed);
  SwigluMlpShape one_image = kSwigluMlpPaper;
  one_image.rows /= 256;
  list.add("swiglu_mlp", "few rows",
           concat("rows", one_image.rows, " ", one_image.width, ">2x", one_image.hidden),
           kSwigluMlpTolerance, swiglu_few_rows_work(one_image, list.compute), few_rows, one_image,
           one_image);
}

}  // namespace fm
