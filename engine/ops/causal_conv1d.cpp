#include "engine/ops/causal_conv1d.h"

#include "engine/tape.h"

namespace fm {
ConvShape conv_shape(const Columns& x, const Parameter& weight, int directions) {
  FM_CHECK(x.of.shape.rank() == 3 && weight.shape.rank() == 2 && weight.shape[0] == x.width,
           "[causal_conv1d] x must be ", weight.shape[0], " columns of [B, L, *], got ", x.width,
           " of ", x.of);
  return {.batch = static_cast<int>(x.of.shape[0]),
          .length = static_cast<int>(x.of.shape[1]),
          .channels = static_cast<int>(x.width),
          .directions = directions,
          .width = static_cast<int>(weight.shape[1])};
}

Tensor causal_conv1d(Context& context, const Columns& x, const Parameter& weight,
                     const Parameter& bias, int directions) {
  const ConvShape shape = conv_shape(x, weight, directions);
  const Tensor u = context.make({x.of.shape[0], x.of.shape[1], x.width});
  context.run([&]<class T>(auto& queue) {
    conv_forward(queue, conv_arguments<T>(shape, x, weight, bias, u));
  });
  record_causal_conv1d(context, x, weight, bias, directions, u);
  return u;
}

void record_causal_conv1d(Context& context, const Columns& x, const Parameter& weight,
                          const Parameter& bias, int directions, const Tensor& u) {
  if (!context.tape) return;
  const ConvShape shape = conv_shape(x, weight, directions);
  context.tape->record(
      {"causal_conv1d", u, {}, [&context, shape, x, &weight, &bias, u] {
         const Columns dx = x.in(context.tape->parts(x.of));
         const std::size_t bytes =
             context.query([&]<class T>(auto&) { return conv_backward_workspace<T>(shape); });
         Scratch workspace(context, bytes);
         context.run([&]<class T>(auto& queue) {
           conv_backward(queue, ConvBackward<T>{.shape = shape,
                                                .x = x.as<T>(),
                                                .x_stride = x.stride(),
                                                .weight = weight.master.as<acc_t<T>>(),
                                                .bias = bias.master.as<acc_t<T>>(),
                                                .du = context.tape->gradient(u).as<T>(),
                                                .dx = dx.as<T>(),
                                                .dweight = weight.gradient.as<acc_t<T>>(),
                                                .dbias = bias.gradient.as<acc_t<T>>(),
                                                .workspace = workspace.data()});
         });
       }});
}

void drop_causal_conv1d(Context& context, const Tensor& u, const Columns& x,
                        const Parameter& weight, const Parameter& bias, int directions) {
  if (!context.tape) return;
  const ConvShape shape = conv_shape(x, weight, directions);
  context.tape->drop(u, [&context, shape, x, &weight, &bias](const Tensor& again) {
    context.run([&]<class T>(auto& queue) {
      conv_forward(queue, conv_arguments<T>(shape, x, weight, bias, again));
    });
  });
}

}  // namespace fm
