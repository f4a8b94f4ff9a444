#include "engine/ops/conv_linear_rmsnorm.h"

#include "engine/ops/causal_conv1d.h"
#include "engine/ops/linear.h"
#include "engine/tape.h"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm.h"

namespace fm {
namespace {

// kernels/linear_rmsnorm/linear_rmsnorm.h says what raw and draw are.
struct Layer {
  LinearRmsNormShape shape;
  Tensor x;
  const Parameter* w;
  std::vector<const Parameter*> weights;
  Tensor y;
};

void backward(Context& context, const Layer& p, const Tensor& raw) {
  const Tensor dy = context.tape->gradient(p.y), x = context.tape->value(p.x);
  const Tape::Target dx = context.tape->target(p.x);
  const std::size_t bytes =
      context.query([&]<class T>(auto&) { return linear_rmsnorm_backward_workspace<T>(p.shape); });
  Scratch partial_sums(context, bytes);
  context.run([&]<class T>(auto& queue) {
    T* const draw = dy.as<T>();  // in place: nobody reads dy after this
    LinearRmsNormBackward<T> layer{.shape = p.shape,
                                   .raw = raw.as<T>(),
                                   .w = p.w->compute.as<T>(),
                                   .weight = {},
                                   .dy = draw,
                                   .draw = draw,
                                   .dx = dx.gradient.as<T>(),
                                   .accumulate = dx.accumulate,
                                   .dweight = {},
                                   .workspace = partial_sums.data()};
    for (std::size_t i = 0; i < p.weights.size(); ++i) {
      layer.weight[i] = p.weights[i]->master.as<acc_t<T>>();
      layer.dweight[i] = p.weights[i]->gradient.as<acc_t<T>>();
    }
    linear_rmsnorm_backward(queue, layer);
  });
  weight_gradient_later(context, {p.shape.product(), dy.data, x, 0, p.w, nullptr});
}

template <class T>
LinearRmsNormForward<T> arguments(const Context& context, const Layer& p, void* raw) {
  LinearRmsNormForward<T> layer{.shape = p.shape,
                                .x = p.x.as<T>(),
                                .w = p.w->compute.as<T>(),
                                .weight = {},
                                .raw = static_cast<T*>(raw),
                                .y = p.y.as<T>(),
                                .keep_raw = context.tape != nullptr};
  for (std::size_t i = 0; i < p.weights.size(); ++i)
    layer.weight[i] = p.weights[i]->master.as<acc_t<T>>();
  return layer;
}

Layer layer_of(Context& context, const Tensor& x, const Parameter& w,
               const std::vector<const Parameter*>& weights) {
  FM_CHECK(x.shape.rank() == 3 && w.shape.rank() == 3 && x.shape[1] == w.shape[0] &&
               x.shape[2] == w.shape[2] && !weights.empty() &&
               weights.size() <= kRmsNormMaxSegments,
           "[linear_rmsnorm] x must be [rows, groups, in], w [groups, out, in], with 1 to 3 "
           "weights, got x ",
           x, ", w ", w.shape, ", ", weights.size());
  LinearRmsNormShape shape{.rows = x.shape[0],
                           .groups = static_cast<int>(x.shape[1]),
                           .in = static_cast<int>(x.shape[2]),
                           .segments = static_cast<int>(weights.size()),
                           .segment_width = {},
                           .eps = 1e-5};
  for (std::size_t i = 0; i < weights.size(); ++i)
    shape.segment_width[i] = static_cast<int>(weights[i]->shape.count()) / shape.groups;
  FM_CHECK(shape.out() == w.shape[1], "[linear_rmsnorm] the weights cover ", shape.out(),
           " columns of ", w.shape[1]);
  return {shape, x, &w, weights, context.make({shape.rows, shape.groups, shape.out()})};
}

}  // namespace

ConvLinearRmsNorm conv_linear_rmsnorm(Context& context, const Columns& x,
                                      const Parameter& conv_weight, const Parameter& conv_bias,
                                      const Parameter& w,
                                      const std::vector<const Parameter*>& weights) {
  FM_CHECK(w.shape.rank() == 3, "[conv_linear_rmsnorm] w must be [groups, out, in], got ", w.shape);
  const int groups = static_cast<int>(w.shape[0]);
  const ConvShape conv = conv_shape(x, conv_weight, groups);
  const std::int64_t tokens = std::int64_t{conv.batch} * conv.length;
  const Tensor u = context.make({conv.batch, conv.length, conv.channels});
  record_causal_conv1d(context, x, conv_weight, conv_bias, groups, u);
  const Layer p = layer_of(context, u.view({tokens, groups, conv.channels / groups}), w, weights);
  const auto forward = [&](void* raw) {
    context.run([&]<class T>(auto& queue) {
      conv_linear_rmsnorm_forward(
          queue,
          ConvLinearRmsNormForward<T>{.conv = conv_arguments<T>(conv, x, conv_weight, conv_bias, u),
                                      .layer = arguments<T>(context, p, raw)});
    });
  };
  if (context.tape) {
    const Tensor raw = context.make(p.y.shape);
    forward(raw.data);
    context.tape->record(
        {"linear_rmsnorm", p.y, {raw}, [&context, p, raw] { backward(context, p, raw); }});
  } else {
    const Scratch raw(context, p.y.bytes());
    forward(raw.data());
  }
  return {u, p.y};
}

}  // namespace fm
