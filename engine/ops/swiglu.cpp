#include "engine/ops/swiglu.h"

#include <algorithm>

#include "engine/tape.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu/swiglu_few_rows.h"
#include "kernels/swiglu_linear/swiglu_linear.h"
#include "kernels/swiglu_mlp/swiglu_mlp.h"

namespace fm {
namespace {

// How much of the network is one kernel: only its products, its wide half (by a kernel for many
// rows, or for the few of a sample), or all of it.
enum class Fused { products, wide_half, wide_half_few_rows, all };

struct Network {
  SwigluWeights weights;
  Tensor x, y;
  Tensor ab;  // a and b, where they go through memory
  Fused fused = Fused::products;

  std::int64_t rows() const { return x.shape.rows(); }
  int width() const { return static_cast<int>(x.shape.back()); }
  int hidden() const { return static_cast<int>(weights.w3->shape[1]); }
  SwigluMlpShape all() const { return {rows(), width(), hidden()}; }
  SwigluLinearShape wide_half() const { return {rows(), width(), hidden()}; }
  SwigluShape gates() const { return {rows(), hidden()}; }
  LinearShape first() const { return {.rows = rows(), .in = width(), .out = 2 * hidden()}; }
  LinearShape second() const { return {.rows = rows(), .in = hidden(), .out = width()}; }
  std::size_t bytes(std::int64_t columns) const {
    return static_cast<std::size_t>(rows() * columns) * size_of(x.dtype);
  }
};

// Whether kernels that fuse more than a product exist for this queue and type.
template <class T, class Q>
constexpr bool kFuses = std::is_same_v<Q, CudaQueue> && sizeof(T) == 2;

// h = silu(a) b with (a, b) = x w12^T + b12
template <class T, class Q>
void hidden_units(Q& queue, const Network& n, T* h) {
  const SwigluWeights& w = n.weights;
  if constexpr (kFuses<T, Q>) {
    if (n.fused == Fused::wide_half) {
      swiglu_linear_forward(queue, SwigluLinearForward<T>{.shape = n.wide_half(),
                                                          .x = n.x.as<T>(),
                                                          .w12 = w.w12->compute.template as<T>(),
                                                          .bias = w.b12->compute.template as<T>(),
                                                          .h = h});
      return;
    }
    if (n.fused == Fused::wide_half_few_rows) {
      swiglu_few_rows(queue, SwigluFewRows<T>{.rows = n.rows(),
                                              .width = n.width(),
                                              .hidden = n.hidden(),
                                              .x = n.x.as<T>(),
                                              .w12 = w.w12->compute.template as<T>(),
                                              .bias = w.b12->compute.template as<T>(),
                                              .h = h});
      return;
    }
  }
  linear_forward(queue, LinearForward<T, T>{.shape = n.first(),
                                            .x = n.x.as<T>(),
                                            .w = w.w12->compute.template as<T>(),
                                            .bias = w.b12->compute.template as<T>(),
                                            .y = n.ab.as<T>()});
  swiglu_forward(queue, SwigluForward<T>{n.gates(), n.ab.as<T>(), h});
}

// From the gradient of y: that of (a, b), where a and b are if they were kept, and h again.
template <class T, class Q>
void hidden_gradient(Q& queue, const Network& n, const T* dy, T* dab, T* h) {
  const SwigluWeights& w = n.weights;
  if constexpr (kFuses<T, Q>) {
    if (n.fused == Fused::wide_half) {
      swiglu_linear_backward(queue, SwigluLinearBackward<T>{.shape = n.wide_half(),
                                                            .x = n.x.as<T>(),
                                                            .w12 = w.w12->compute.template as<T>(),
                                                            .bias = w.b12->compute.template as<T>(),
                                                            .w3 = w.w3->compute.template as<T>(),
                                                            .dy = dy,
                                                            .dab = dab,
                                                            .h = h});
      return;
    }
  }
  // In place: h goes in as the gradient of the hidden units and comes out as the units.
  linear_backward_input(
      queue, LinearBackwardInput<T>{
                 .shape = n.second(), .dy = dy, .w = w.w3->compute.template as<T>(), .dx = h});
  swiglu_backward(queue,
                  SwigluBackward<T>{.shape = n.gates(), .ab = dab, .dy = h, .dab = dab, .y = h});
}

void forward(Context& context, const Network& n) {
  Scratch h(context, n.fused == Fused::all ? 0 : n.bytes(n.hidden()));
  context.run([&]<class T, class Q>(Q& queue) {
    const SwigluWeights& w = n.weights;
    if constexpr (kFuses<T, Q>) {
      if (n.fused == Fused::all) {
        swiglu_mlp_forward(queue, SwigluMlpForward<T>{.shape = n.all(),
                                                      .x = n.x.as<T>(),
                                                      .w12 = w.w12->compute.as<T>(),
                                                      .b12 = w.b12->compute.as<T>(),
                                                      .w3 = w.w3->compute.as<T>(),
                                                      .b3 = w.b3->compute.as<T>(),
                                                      .y = n.y.as<T>()});
        return;
      }
    }
    hidden_units(queue, n, h.as<T>());
    linear_forward(queue, LinearForward<T, T>{.shape = n.second(),
                                              .x = h.as<T>(),
                                              .w = w.w3->compute.as<T>(),
                                              .bias = w.b3->compute.as<T>(),
                                              .y = n.y.as<T>()});
  });
}

// The gradient of x takes the place of y's.
void backward_all(Context& context, const Network& n, const Tensor& gradient) {
  Scratch workspace(context, swiglu_mlp_backward_workspace(n.all()));
  context.run([&]<class T, class Q>(Q& queue) {
    if constexpr (kFuses<T, Q>) {
      const SwigluWeights& w = n.weights;
      swiglu_mlp_backward(queue, SwigluMlpBackward<T>{.shape = n.all(),
                                                      .x = n.x.as<T>(),
                                                      .w12 = w.w12->compute.as<T>(),
                                                      .b12 = w.b12->compute.as<T>(),
                                                      .w3 = w.w3->compute.as<T>(),
                                                      .dy = gradient.as<T>(),
                                                      .dx = gradient.as<T>(),
                                                      .dw12 = w.w12->gradient.as<float>(),
                                                      .db12 = w.b12->gradient.as<float>(),
                                                      .dw3 = w.w3->gradient.as<float>(),
                                                      .db3 = w.b3->gradient.as<float>(),
                                                      .workspace = workspace.data()});
    }
  });
}

void backward_by_products(Context& context, const Network& n, const Tensor& gradient) {
  Scratch made(context, n.ab ? 0 : n.bytes(2 * n.hidden())), h(context, n.bytes(n.hidden()));
  Scratch workspace(context, std::max(linear_backward_weight_workspace(n.first()),
                                      linear_backward_weight_workspace(n.second())));
  context.run([&]<class T>(auto& queue) {
    T* const dab = n.ab ? n.ab.as<T>() : made.as<T>();
    const auto weight_gradient = [&](const LinearShape& shape, const T* x, const T* dy,
                                     const Parameter* w, const Parameter* b) {
      linear_backward_weight(queue, LinearBackwardWeight<T>{.shape = shape,
                                                            .dy = dy,
                                                            .x = x,
                                                            .dw = w->gradient.as<acc_t<T>>(),
                                                            .dbias = b->gradient.as<acc_t<T>>(),
                                                            .workspace = workspace.data()});
    };
    hidden_gradient(queue, n, gradient.as<T>(), dab, h.as<T>());
    weight_gradient(n.second(), h.as<T>(), gradient.as<T>(), n.weights.w3, n.weights.b3);
    weight_gradient(n.first(), n.x.as<T>(), dab, n.weights.w12, n.weights.b12);
    linear_backward_input(queue, LinearBackwardInput<T>{.shape = n.first(),
                                                        .dy = dab,
                                                        .w = n.weights.w12->compute.as<T>(),
                                                        .dx = gradient.as<T>()});
  });
}

void backward(Context& context, const Network& n) {
  const Tensor gradient = context.tape->gradient(n.y);
  if (n.fused == Fused::all) backward_all(context, n, gradient);
  else backward_by_products(context, n, gradient);
  context.tape->hand_over(n.y, n.x);
}

Fused fused([[maybe_unused]] const Context& context, [[maybe_unused]] const Network& n) {
#if FM_CUDA
  if (const auto* queue = std::get_if<CudaQueue>(&context.queue)) {
    if (!context.tape && swiglu_few_rows_fits(n.rows(), n.width(), n.hidden(), context.compute))
      return Fused::wide_half_few_rows;
    if (swiglu_mlp_fits(*queue, n.all(), context.compute)) return Fused::all;
    if (swiglu_linear_fits(n.wide_half(), context.compute)) return Fused::wide_half;
  }
#endif
  return Fused::products;
}

}  // namespace

Tensor swiglu_mlp(Context& context, const Tensor& x, const SwigluWeights& w) {
  const std::int64_t d = x.shape.back(), hidden = w.w3->shape[1];
  FM_CHECK(x.shape.rank() == 3 && hidden % 8 == 0 && w.w12->shape == (Shape{2 * hidden, d}) &&
               w.w3->shape[0] == d,
           "[swiglu] x must be [B, L, d], w12 [2 hidden, d] and w3 [d, hidden] with hidden a "
           "multiple of 8, got x ",
           x, ", w12 ", w.w12->shape, ", w3 ", w.w3->shape);
  Network network{w, x, context.make(x.shape), {}};
  network.fused = fused(context, network);
  const bool keeps_ab = network.fused == Fused::products;
  if (keeps_ab) network.ab = context.make({x.shape[0], x.shape[1], 2 * hidden});
  forward(context, network);
  if (context.tape)
    context.tape->record({"swiglu", network.y,
                          keeps_ab ? std::vector<Tensor>{network.ab} : std::vector<Tensor>{},
                          [&context, network] { backward(context, network); }});
  return network.y;
}

}  // namespace fm
