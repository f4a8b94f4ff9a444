#include "engine/ops/rmsnorm.h"

#include "engine/tape.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {
namespace {

void backward(Context& context, const RmsNormShape& shape, const Tensor& x, const Tensor& y,
              const std::vector<const Parameter*>& weights) {
  const std::size_t bytes =
      context.query([&]<class T>(auto&) { return rmsnorm_backward_workspace<T>(shape); });
  Scratch workspace(context, bytes);
  const Tensor gradient = context.tape->gradient(y);
  context.run([&]<class T>(auto& queue) {
    RmsNormBackward<T> p{.shape = shape,
                         .x = x.as<T>(),
                         .weight = {},
                         .dy = gradient.as<T>(),
                         .dx = gradient.as<T>(),  // in place: handed over below
                         .dweight = {},
                         .workspace = workspace.data()};
    for (std::size_t i = 0; i < weights.size(); ++i) {
      p.weight[i] = weights[i]->master.as<acc_t<T>>();
      p.dweight[i] = weights[i]->gradient.as<acc_t<T>>();
    }
    rmsnorm_backward(queue, p);
  });
  context.tape->hand_over(y, x);
}

}  // namespace

Tensor rmsnorm(Context& context, const Tensor& x, const std::vector<const Parameter*>& weights) {
  FM_CHECK(x.shape.rank() == 3 && !weights.empty() && weights.size() <= 3,
           "[rmsnorm] x must be [rows, groups, width] with 1 to 3 weights, got ", x, ", ",
           weights.size());
  RmsNormShape shape{.rows = x.shape[0],
                     .groups = static_cast<int>(x.shape[1]),
                     .width = static_cast<int>(x.shape[2]),
                     .segments = static_cast<int>(weights.size()),
                     .begin = {},
                     .segment_width = {},
                     .eps = 1e-5};
  int column = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    shape.begin[i] = column;
    shape.segment_width[i] = static_cast<int>(weights[i]->shape.count()) / shape.groups;
    column += shape.segment_width[i];
  }
  FM_CHECK(column == shape.width, "[rmsnorm] the weights cover ", column, " columns of ", x);
  const Tensor y = context.make(x.shape);
  context.run([&]<class T>(auto& queue) {
    RmsNormForward<T> p{.shape = shape, .x = x.as<T>(), .weight = {}, .y = y.as<T>()};
    for (std::size_t i = 0; i < weights.size(); ++i)
      p.weight[i] = weights[i]->master.as<acc_t<T>>();
    rmsnorm_forward(queue, p);
  });
  if (context.tape)
    context.tape->record({"rmsnorm", y, {}, [&context, shape, x, y, weights] {
                            backward(context, shape, x, y, weights);
                          }});
  return y;
}

}  // namespace fm
