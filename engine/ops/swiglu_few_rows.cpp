#include "engine/ops/swiglu_few_rows.h"

#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu_few_rows.h"

namespace fm {

Tensor swiglu_mlp_few_rows([[maybe_unused]] Context& context, [[maybe_unused]] const Tensor& x,
                           [[maybe_unused]] const SwigluWeights& w) {
#if FM_CUDA
  const std::int64_t rows = x.shape.rows();
  const int width = static_cast<int>(x.shape.back()), hidden = static_cast<int>(w.w3->shape[1]);
  if (context.tape || !std::holds_alternative<CudaQueue>(context.queue) ||
      !swiglu_few_rows_fits(rows, width, hidden, context.compute))
    return {};
  const Tensor y = context.make(x.shape);
  Scratch h(context, static_cast<std::size_t>(rows * hidden) * size_of(x.dtype));
  context.run([&]<class T>(auto& queue) {
    if constexpr (sizeof(T) == 2) {
      swiglu_few_rows(queue, SwigluFewRows<T>{.rows = rows,
                                              .width = width,
                                              .hidden = hidden,
                                              .x = x.as<T>(),
                                              .w12 = w.w12->compute.as<T>(),
                                              .bias = w.b12->compute.as<T>(),
                                              .h = h.as<T>()});
      linear_forward(queue, LinearForward<T, T>{.shape = {.rows = rows, .in = hidden, .out = width},
                                                .x = h.as<T>(),
                                                .w = w.w3->compute.as<T>(),
                                                .bias = w.b3->compute.as<T>(),
                                                .y = y.as<T>()});
    }
  });
  return y;
#else
  return {};
#endif
}

}  // namespace fm
