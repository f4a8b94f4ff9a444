#include "engine/ops/residual_gate.h"

#include "engine/tape.h"
#include "kernels/residual_gate/residual_gate.h"

namespace fm {

Tensor residual_gate(Context& context, const Tensor& x, const Tensor& f, const Columns& gate) {
  FM_CHECK(x.shape.rank() == 3 && x.shape == f.shape && gate.width == x.shape[2] &&
               gate.of.shape[0] == x.shape[0],
           "[residual_gate] x and f must be [B, L, d] and the gate d columns of [B, *], got x ", x,
           ", f ", f, ", gate ", gate.width, " of ", gate.of);
  const ResidualGateShape shape{.batch = static_cast<int>(x.shape[0]),
                                .length = static_cast<int>(x.shape[1]),
                                .width = static_cast<int>(x.shape[2]),
                                .modulation_stride = gate.stride()};
  const Tensor out =
      context.tape ? context.make(x.shape, context.acc()) : x;  // in place where nobody looks back
  context.run([&]<class T>(auto& queue) {
    residual_gate_forward(queue, ResidualGateForward<T>{shape, x.as<acc_t<T>>(), f.as<T>(),
                                                        gate.as<T>(), out.as<acc_t<T>>()});
  });
  if (context.tape) {
    context.tape->record(
        {"residual_gate", out, {}, [&context, shape, x, f, gate, out] {
           const Tape::Target df = context.tape->target(f);
           FM_CHECK(!df.accumulate, "[residual_gate] the branch must have no other use");
           const Columns dgate = gate.in(context.tape->parts(gate.of));
           context.run([&]<class T>(auto& queue) {
             residual_gate_backward(
                 queue, ResidualGateBackward<T>{.shape = shape,
                                                .dout = context.tape->gradient(out).as<acc_t<T>>(),
                                                .f = f.as<T>(),
                                                .gate = gate.as<T>(),
                                                .df = df.gradient.as<T>(),
                                                .dgate = dgate.as<T>()});
           });
           context.tape->hand_over(out, x);
         }});
  }
  return out;
}

}  // namespace fm
