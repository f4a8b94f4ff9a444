#include "engine/ops/activation.h"

#include "engine/tape.h"
#include "kernels/activation/activation.h"

namespace fm {

Tensor silu(Context& context, const Tensor& x) {
  const Tensor y = context.make(x.shape);
  context.run([&]<class T>(auto& queue) {
    silu_forward(queue, SiluForward<T>{x.count(), x.as<T>(), y.as<T>()});
  });
  if (context.tape) {
    context.tape->record({"silu", y, {}, [&context, x, y] {
                            const Tape::Target dx = context.tape->target(x);
                            FM_CHECK(!dx.accumulate, "[silu] x must have no other use");
                            context.run([&]<class T>(auto& queue) {
                              silu_backward(queue,
                                            SiluBackward<T>{x.count(), x.as<T>(),
                                                            context.tape->gradient(y).as<T>(),
                                                            dx.gradient.as<T>()});
                            });
                          }});
  }
  return y;
}

}  // namespace fm
