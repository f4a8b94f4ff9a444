#include "engine/ops/rmsnorm_linear.h"

#include "engine/tape.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear.h"

namespace fm {
namespace {

// kernels/rmsnorm_linear/rmsnorm_linear.h says what v and r are.
struct Layer {
  RmsNormLinearShape norm;
  Tensor x;
  std::optional<Columns> z;
  const Parameter* weight;
  const Parameter* w;
  Tensor v, r, y;
};

void backward(Context& context, const Layer& p) {
  const Tape::Target dx = context.tape->target(p.x);
  FM_CHECK(!dx.accumulate, "[rmsnorm_linear] x must have no other use");
  const Tensor dy = context.tape->gradient(p.y), x = context.tape->value(p.x);
  std::optional<Columns> dz;
  if (p.z) dz = p.z->in(context.tape->parts(p.z->of));
  const std::size_t bytes = context.query(
      [&]<class T>(auto& queue) { return rmsnorm_linear_backward_workspace<T>(queue, p.norm); });
  const Scratch workspace(context, bytes);
  const auto arguments = [p, dy, x, dx = dx.gradient, dz, memory = workspace.data()]<class T>() {
    return RmsNormLinearBackward<T>{.shape = p.norm,
                                    .dy = dy.as<T>(),
                                    .y = p.y.as<T>(),
                                    .r = p.r.as<acc_t<T>>(),
                                    .v = p.v.as<T>(),
                                    .x = x.as<T>(),
                                    .dx = dx.as<T>(),
                                    .dv = p.w->gradient.as<acc_t<T>>(),
                                    .z = p.z ? p.z->as<T>() : nullptr,
                                    .dz = dz ? dz->as<T>() : nullptr,
                                    .workspace = memory};
  };
  context.run([&]<class T>(auto& queue) {
    rmsnorm_linear_backward(queue, arguments.template operator()<T>());
  });
  context.tape->later({workspace.data()}, [&context, p, arguments] {
    context.run([&]<class T>(auto& queue) {
      using Acc = acc_t<T>;
      rmsnorm_linear_backward_weight(queue, arguments.template operator()<T>());
      rmsnorm_fold_backward(queue, RmsNormFoldBackward<T>{.shape = p.norm,
                                                          .w = p.w->master.as<Acc>(),
                                                          .weight = p.weight->master.as<Acc>(),
                                                          .dw = p.w->gradient.as<Acc>(),
                                                          .dweight = p.weight->gradient.as<Acc>()});
    });
  });
}

void forward(Context& context, const Layer& p, int begin, int end) {
  const std::int64_t length = p.x.shape[1], first = begin * length;
  RmsNormLinearShape norm = p.norm;
  norm.rows = (end - begin) * length;
  const std::size_t bytes = context.query(
      [&]<class T>(auto& queue) { return rmsnorm_linear_forward_workspace<T>(queue, norm); });
  const Scratch workspace(context, bytes);
  context.run([&]<class T>(auto& queue) {
    rmsnorm_linear_forward(
        queue, RmsNormLinearForward<T>{.shape = norm,
                                       .x = p.x.as<T>() + first * norm.in,
                                       .v = p.v.as<T>(),
                                       .y = p.y.as<T>() + first * norm.out,
                                       .r = p.r.as<acc_t<T>>() + first,
                                       .z = p.z ? p.z->as<T>() + first * norm.z_stride : nullptr,
                                       .workspace = workspace.data()});
  });
}

}  // namespace

Tensor rmsnorm_linear(Context& context, const Tensor& x, const Parameter& weight,
                      const Parameter& w, const std::optional<Columns>& z) {
  FM_CHECK(x.shape.rank() == 3 && w.shape.rank() == 2 && x.shape[2] == w.shape[1] &&
               weight.shape.count() == w.shape[1] && (!z || z->width == x.shape[2]),
           "[rmsnorm_linear] x must be [B, L, in], the weight [in] and w [out, in], got x ", x,
           ", ", weight.shape, ", ", w.shape);
  const int in = static_cast<int>(w.shape[1]), out = static_cast<int>(w.shape[0]);
  const std::int64_t rows = x.shape.rows();
  const Layer p{
      .norm = {.rows = rows, .in = in, .out = out, .eps = 1e-5, .z_stride = z ? z->stride() : 0},
      .x = x,
      .z = z,
      .weight = &weight,
      .w = &w,
      .v = context.make(w.shape),
      .r = context.make({rows}, context.acc()),
      .y = context.make({x.shape[0], x.shape[1], out})};
  bool done = false;  // at once, without v and r
  context.run([&]<class T>(auto& queue) {
    using Acc = acc_t<T>;
    done =
        !context.tape && !z &&
        rmsnorm_linear_inference(queue, RmsNormLinearInference<T>{.shape = p.norm,
                                                                  .x = x.as<T>(),
                                                                  .w = w.master.as<Acc>(),
                                                                  .weight = weight.master.as<Acc>(),
                                                                  .y = p.y.as<T>()});
    if (!done)
      rmsnorm_fold(queue, RmsNormFold<T>{.shape = p.norm,
                                         .w = w.master.as<Acc>(),
                                         .weight = weight.master.as<Acc>(),
                                         .v = p.v.as<T>()});
  });
  if (!done)
    context.by_images(static_cast<int>(x.shape[0]),
                      [&context, p](int begin, int end) { forward(context, p, begin, end); });
  if (context.tape)
    context.tape->record(
        {"rmsnorm_linear", p.y, {p.v, p.r}, [&context, p] { backward(context, p); }});
  return p.y;
}

}  // namespace fm
