#include "engine/ops/rmsnorm_linear.h"

#include "engine/tape.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {
namespace {

// kernels/rmsnorm_linear/rmsnorm_linear.h says what v, r, s and g are.
struct Layer {
  RmsNormLinearShape norm;
  LinearShape product;
  Tensor x;
  const Parameter* weight;
  const Parameter* w;
  Tensor v, r, y;
};

void backward(Context& context, const Layer& p) {
  const Tape::Target dx = context.tape->target(p.x);
  FM_CHECK(!dx.accumulate, "[rmsnorm_linear] x must have no other use");
  const Tensor dy = context.tape->gradient(p.y), x = context.tape->value(p.x);
  const Tensor& dw = p.w->gradient;
  Scratch s(context, p.r.bytes());
  Scratch workspace(context, linear_backward_weight_workspace(p.product));
  context.run([&]<class T>(auto& queue) {
    using Acc = acc_t<T>;
    T* g = dy.as<T>();  // in place: nobody reads dy after this
    rmsnorm_scale_backward(queue, RmsNormScaleBackward<T>{.shape = p.norm,
                                                          .dy = g,
                                                          .y = p.y.as<T>(),
                                                          .r = p.r.as<Acc>(),
                                                          .g = g,
                                                          .s = static_cast<Acc*>(s.data())});
    linear_backward_weight(queue, LinearBackwardWeight<T>{.shape = p.product,
                                                          .dy = g,
                                                          .x = x.as<T>(),
                                                          .dw = dw.as<Acc>(),
                                                          .dbias = nullptr,
                                                          .workspace = workspace.data()});
    rmsnorm_fold_backward(queue, RmsNormFoldBackward<T>{.shape = p.norm,
                                                        .w = p.w->master.as<Acc>(),
                                                        .weight = p.weight->master.as<Acc>(),
                                                        .dw = dw.as<Acc>(),
                                                        .dweight = p.weight->gradient.as<Acc>()});
    rmsnorm_linear_backward_input(
        queue, RmsNormLinearBackwardInput<T>{.shape = p.norm,
                                             .g = g,
                                             .v = p.v.as<T>(),
                                             .x = x.as<T>(),
                                             .s = static_cast<const Acc*>(s.data()),
                                             .dx = dx.gradient.as<T>()});
  });
}

}  // namespace

Tensor rmsnorm_linear(Context& context, const Tensor& x, const Parameter& weight,
                      const Parameter& w) {
  FM_CHECK(x.shape.rank() == 3 && w.shape.rank() == 2 && x.shape[2] == w.shape[1] &&
               weight.shape.count() == w.shape[1],
           "[rmsnorm_linear] x must be [B, L, in], the weight [in] and w [out, in], got x ", x,
           ", ", weight.shape, ", ", w.shape);
  const int in = static_cast<int>(w.shape[1]), out = static_cast<int>(w.shape[0]);
  const std::int64_t rows = x.shape.rows();
  const Layer p{.norm = {.rows = rows, .in = in, .out = out, .eps = 1e-5},
                .product = {.rows = rows, .in = in, .out = out},
                .x = x,
                .weight = &weight,
                .w = &w,
                .v = context.make(w.shape),
                .r = context.make({rows}, context.acc()),
                .y = context.make({x.shape[0], x.shape[1], out})};
  context.run([&]<class T>(auto& queue) {
    using Acc = acc_t<T>;
    if (!context.tape &&
        rmsnorm_linear_inference(queue, RmsNormLinearInference<T>{.shape = p.norm,
                                                                  .x = x.as<T>(),
                                                                  .w = w.master.as<Acc>(),
                                                                  .weight = weight.master.as<Acc>(),
                                                                  .y = p.y.as<T>()}))
      return;
    rmsnorm_fold(queue, RmsNormFold<T>{.shape = p.norm,
                                       .w = w.master.as<Acc>(),
                                       .weight = weight.master.as<Acc>(),
                                       .v = p.v.as<T>()});
    rmsnorm_linear_forward(queue, RmsNormLinearForward<T>{.shape = p.norm,
                                                          .x = x.as<T>(),
                                                          .v = p.v.as<T>(),
                                                          .y = p.y.as<T>(),
                                                          .r = p.r.as<Acc>()});
  });
  if (context.tape)
    context.tape->record(
        {"rmsnorm_linear", p.y, {p.v, p.r}, [&context, p] { backward(context, p); }});
  return p.y;
}

}  // namespace fm
