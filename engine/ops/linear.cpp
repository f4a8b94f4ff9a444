#include "engine/ops/linear.h"

#include "engine/tape.h"
#include "kernels/cast/cast.h"
#include "kernels/matmul/matmul.h"

namespace fm {
namespace {

struct Product {
  LinearShape shape;
  Tensor x;
  std::int64_t begin;  // first column of x
  bool whole;          // the columns are all of x
  const Parameter* w;
  const Parameter* b;
  Tensor y;
};

// The gradient of a y that was kept in full precision, rounded to the compute type.
template <class T, class Q>
void narrow_gradient(Q& queue, const Tensor& dy, T* copy) {
  if constexpr (!std::is_same_v<T, acc_t<T>>)
    cast(queue, Cast<acc_t<T>, T>{dy.count(), dy.as<acc_t<T>>(), copy});
}

void backward(Context& context, const Product& p) {
  const Tensor dy = context.tape->gradient(p.y);
  const bool copied = dy.dtype != context.compute;
  Scratch copy(context,
               copied ? static_cast<std::size_t>(dy.count()) * size_of(context.compute) : 0);
  void* const gradient = copied ? copy.data() : dy.data;  // in the compute type
  if (copied)
    context.run(
        [&]<class T>(auto& queue) { narrow_gradient(queue, dy, static_cast<T*>(gradient)); });
  const Tensor x = context.tape->value(p.x);
  weight_gradient_later(context, {p.shape, gradient, x, p.begin, p.w, p.b});
  if (!context.tape->wants(p.x)) return;
  const Tape::Target dx = context.tape->target(p.x);
  context.run([&]<class T>(auto& queue) {
    linear_backward_input(queue, LinearBackwardInput<T>{.shape = p.shape,
                                                        .dy = static_cast<const T*>(gradient),
                                                        .w = p.w->compute.as<T>(),
                                                        .dx = dx.gradient.as<T>() + p.begin,
                                                        .accumulate = p.whole && dx.accumulate});
  });
}

void record(Context& context, const Product& p) {
  context.tape->record({"linear", p.y, {}, [&context, p] { backward(context, p); }});
}

Tensor forward(Context& context, const Product& p) {
  context.run([&]<class T>(auto& queue) {
    const auto product = [&]<class Y>() {
      linear_forward(queue, LinearForward<T, Y>{.shape = p.shape,
                                                .x = p.x.as<T>() + p.begin,
                                                .w = p.w->compute.as<T>(),
                                                .bias = p.b ? p.b->compute.as<T>() : nullptr,
                                                .y = p.y.as<Y>()});
    };
    if (p.y.dtype == dtype_of<T>()) product.template operator()<T>();
    else product.template operator()<acc_t<T>>();
  });
  if (context.tape) record(context, p);
  return p.y;
}

}  // namespace

void weight_gradient_later(Context& context, const WeightGradient& p) {
  context.tape->later({p.dy, p.x.data}, [&context, p] {
    const Scratch workspace(context, linear_backward_weight_workspace(p.shape));
    context.run([&]<class T>(auto& queue) {
      linear_backward_weight(
          queue, LinearBackwardWeight<T>{.shape = p.shape,
                                         .dy = static_cast<const T*>(p.dy),
                                         .x = p.x.as<T>() + p.begin,
                                         .dw = p.w->gradient.as<acc_t<T>>(),
                                         .dbias = p.b ? p.b->gradient.as<acc_t<T>>() : nullptr,
                                         .workspace = workspace.data()});
    });
  });
}

Tensor linear(Context& context, const Tensor& x, const Parameter& w, const Parameter* b,
              bool full_precision) {
  FM_CHECK(w.shape.rank() == 2 && x.shape.back() == w.shape[1],
           "[linear] x's last dimension must be ", w.name, "'s second, got x ", x, ", w ", w.shape);
  const std::int64_t out = w.shape[0];
  const Shape shape =
      x.shape.rank() == 3 ? Shape{x.shape[0], x.shape[1], out} : Shape{x.shape.rows(), out};
  const DType dtype = full_precision ? context.acc() : context.compute;
  const LinearShape product{
      .rows = x.shape.rows(), .in = static_cast<int>(w.shape[1]), .out = static_cast<int>(out)};
  return forward(context, {product, x, 0, true, &w, b, context.make(shape, dtype)});
}

void record_linear(Context& context, const Tensor& x, const Parameter& w, const Parameter* b,
                   const Tensor& y) {
  const LinearShape product{.rows = x.shape.rows(),
                            .in = static_cast<int>(w.shape[1]),
                            .out = static_cast<int>(w.shape[0])};
  record(context, {product, x, 0, true, &w, b, y});
}

Tensor grouped_linear(Context& context, const Tensor& x, std::int64_t begin, const Parameter& w) {
  FM_CHECK(x.shape.rank() == 3 && w.shape.rank() == 3 && x.shape[1] == w.shape[0] &&
               begin + w.shape[2] <= x.shape[2],
           "[grouped_linear] x must be [rows, groups, width] and hold columns ", begin, " to ",
           begin + w.shape[2], ", got x ", x, ", w ", w.shape);
  const std::int64_t rows = x.shape[0], groups = x.shape[1], width = x.shape[2], out = w.shape[1];
  const LinearShape product{.rows = rows,
                            .in = static_cast<int>(w.shape[2]),
                            .out = static_cast<int>(out),
                            .groups = static_cast<int>(groups),
                            .x_stride = groups * width,
                            .y_stride = groups * out,
                            .x_group = width,
                            .y_group = out};
  const bool whole = w.shape[2] == width;
  return forward(context,
                 {product, x, begin, whole, &w, nullptr, context.make({rows, groups, out})});
}

}  // namespace fm
