#include "engine/ops/layernorm.h"

#include "engine/tape.h"
#include "kernels/layernorm/layernorm.h"

namespace fm {

Tensor layernorm_modulate(Context& context, const Tensor& x, const Columns& shift,
                          const Columns& scale) {
  FM_CHECK(x.shape.rank() == 3 && shift.width == x.shape[2] && scale.width == x.shape[2] &&
               shift.of.data == scale.of.data && shift.of.shape[0] == x.shape[0],
           "[layernorm] shift and scale must be ", x.shape.back(),
           " columns of one [B, *] tensor, got x ", x, ", ", shift.of, ", ", scale.of);
  const LayerNormShape shape{.batch = static_cast<int>(x.shape[0]),
                             .length = static_cast<int>(x.shape[1]),
                             .width = static_cast<int>(x.shape[2]),
                             .modulation_stride = shift.stride()};
  const Tensor y = context.make(x.shape);
  context.run([&]<class T>(auto& queue) {
    layernorm_forward(queue, LayerNormForward<T>{shape, x.as<acc_t<T>>(), shift.as<T>(),
                                                 scale.as<T>(), y.as<T>()});
  });
  if (context.tape) {
    context.tape->record({"layernorm", y, {}, [&context, shape, x, shift, scale, y] {
                            const Tape::Target dx = context.tape->target(x);
                            const Tensor modulation = context.tape->parts(shift.of);
                            context.run([&]<class T>(auto& queue) {
                              layernorm_backward(
                                  queue,
                                  LayerNormBackward<T>{.shape = shape,
                                                       .x = x.as<acc_t<T>>(),
                                                       .scale = scale.as<T>(),
                                                       .dy = context.tape->gradient(y).as<T>(),
                                                       .dx = dx.gradient.as<acc_t<T>>(),
                                                       .accumulate = dx.accumulate,
                                                       .dshift = shift.in(modulation).as<T>(),
                                                       .dscale = scale.in(modulation).as<T>()});
                            });
                          }});
  }
  return y;
}

}  // namespace fm
