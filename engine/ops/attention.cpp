#include "engine/ops/attention.h"

#include "engine/tape.h"
#include "kernels/attention/attention.h"

namespace fm {

Tensor attention(Context& context, const Tensor& qkv, int heads) {
  FM_CHECK(qkv.shape.rank() == 3 && heads > 0 && qkv.shape[2] % (3 * heads) == 0,
           "[attention] qkv must be [B, L, 3 d] with d a multiple of heads = ", heads, ", got ",
           qkv);
  const std::int64_t batch = qkv.shape[0], length = qkv.shape[1], width = qkv.shape[2] / 3;
  const AttentionShape shape{static_cast<int>(batch), static_cast<int>(length), heads,
                             static_cast<int>(width / heads)};
  const Tensor o = context.make({batch, length, width});
  Tensor lse{nullptr, {batch, heads, length}, context.acc()};
  if (context.tape) lse = context.make(lse.shape, lse.dtype);
  context.run([&]<class T>(auto& queue) {
    attention_forward(queue,
                      AttentionForward<T>{shape, qkv.as<T>(), o.as<T>(), lse.as<acc_t<T>>()});
  });
  if (context.tape) {
    context.tape->record({"attention", o, {lse}, [&context, shape, qkv, o, lse] {
                            const Tape::Target target = context.tape->target(qkv);
                            FM_CHECK(!target.accumulate, "[attention] qkv must have no other use");
                            const std::size_t bytes = context.query([&]<class T>(auto&) {
                              return attention_backward_workspace<T>(shape);
                            });
                            Scratch workspace(context, bytes);
                            context.run([&]<class T>(auto& queue) {
                              attention_backward(
                                  queue,
                                  AttentionBackward<T>{.shape = shape,
                                                       .qkv = qkv.as<T>(),
                                                       .o = o.as<T>(),
                                                       .lse = lse.as<acc_t<T>>(),
                                                       .d_o = context.tape->gradient(o).as<T>(),
                                                       .d_qkv = target.gradient.as<T>(),
                                                       .workspace = workspace.data()});
                            });
                          }});
  }
  return o;
}

}  // namespace fm
