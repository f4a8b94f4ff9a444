#include "engine/ops/swiglu.h"

#include "engine/tape.h"
#include "kernels/swiglu/swiglu.h"

namespace fm {

Tensor swiglu(Context& context, const Tensor& ab) {
  FM_CHECK(ab.shape.rank() == 3 && ab.shape[2] % 16 == 0,
           "[swiglu] ab must be [B, L, 2 hidden] with hidden a "
           "multiple of 8, got ",
           ab);
  const SwigluShape shape{ab.shape.rows(), static_cast<int>(ab.shape[2] / 2)};
  const Tensor y = context.make({ab.shape[0], ab.shape[1], ab.shape[2] / 2});
  context.run([&]<class T>(auto& queue) {
    swiglu_forward(queue, SwigluForward<T>{shape, ab.as<T>(), y.as<T>()});
  });
  if (context.tape) {
    context.tape->record({"swiglu", y, {}, [&context, shape, ab, y] {
                            const Tape::Target dab = context.tape->target(ab);
                            FM_CHECK(!dab.accumulate, "[swiglu] ab must have no other use");
                            context.run([&]<class T>(auto& queue) {
                              swiglu_backward(queue,
                                              SwigluBackward<T>{shape, ab.as<T>(),
                                                                context.tape->gradient(y).as<T>(),
                                                                dab.gradient.as<T>()});
                            });
                          }});
  }
  return y;
}

}  // namespace fm
