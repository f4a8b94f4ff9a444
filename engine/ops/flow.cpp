#include "engine/ops/flow.h"

#include "engine/tape.h"
#include "kernels/flow/flow.h"

namespace fm {

PathPoint flow_interpolate(Context& context, const Tensor& x0, const Tensor& x1, const Tensor& t) {
  FM_CHECK(x0.shape == x1.shape && t.count() == x0.shape[0],
           "[flow] x0 and x1 must have one shape, t one value an "
           "image, got x0 ",
           x0, ", x1 ", x1, ", t ", t);
  const PathPoint point{context.make(x0.shape, context.acc()),
                        context.make(x0.shape, context.acc())};
  const int batch = static_cast<int>(x0.shape[0]);
  context.run([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    flow_interpolate(queue, FlowInterpolate<R>{batch, x0.count() / batch, x0.as<R>(), x1.as<R>(),
                                               t.as<R>(), point.x_t.as<R>(), point.target.as<R>()});
  });
  return point;
}

Tensor flow_loss(Context& context, const Tensor& v, const Tensor& target, const StepState* state) {
  FM_CHECK(v.shape == target.shape, "[flow_loss] v and target must have one shape, got ", v, ", ",
           target);
  const Tensor loss = context.make({1}, context.acc());
  {
    Scratch workspace(context, flow_loss_workspace(v.count()));
    context.run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      flow_loss_forward(queue, FlowLossForward<R>{v.count(), v.as<R>(), target.as<R>(),
                                                  loss.as<R>(), workspace.data()});
    });
  }
  if (context.tape) {
    // No output: the loss outlives the tape, the optimizer logs it.
    context.tape->record({"flow_loss", {}, {}, [&context, v, target, state] {
                            const Tape::Target dv = context.tape->target(v);
                            context.run([&]<class T>(auto& queue) {
                              using R = acc_t<T>;
                              flow_loss_backward(
                                  queue, FlowLossBackward<R>{v.count(), v.as<R>(), target.as<R>(),
                                                             state, dv.gradient.as<R>()});
                            });
                          }});
  }
  return loss;
}

}  // namespace fm
