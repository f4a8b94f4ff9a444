#include "engine/ops/embedding.h"

#include "engine/tape.h"
#include "kernels/embedding/embedding.h"

namespace fm {

Tensor sinusoid_embedding(Context& context, const Tensor& t, int width) {
  FM_CHECK(width > 0 && width % 2 == 0, "[sinusoid] width must be even, got ", width);
  const Tensor out = context.make({t.count(), width});
  context.run([&]<class T>(auto& queue) {
    sinusoid_embedding(queue, SinusoidEmbedding<T>{static_cast<int>(t.count()), width, 1000.0,
                                                   t.as<acc_t<T>>(), out.as<T>()});
  });
  if (context.tape) context.tape->constant(out);
  return out;
}

Tensor add_label(Context& context, const Tensor& x, const Tensor& labels, const Parameter& table) {
  FM_CHECK(x.shape.rank() == 2 && table.shape[1] == x.shape[1] && labels.count() == x.shape[0],
           "[label] x must be [B, d], labels [B], the table [classes + 1, d], got x ", x,
           ", labels ", labels, ", table ", table.shape);
  const int batch = static_cast<int>(x.shape[0]), width = static_cast<int>(x.shape[1]),
            classes = static_cast<int>(table.shape[0]) - 1;
  const Tensor y = context.make(x.shape);
  context.run([&]<class T>(auto& queue) {
    label_forward(queue, LabelForward<T>{batch, width, classes, labels.as<std::int32_t>(),
                                         table.compute.as<T>(), x.as<T>(), y.as<T>()});
  });
  if (context.tape) {
    context.tape->record({"label", y, {}, [&context, batch, width, classes, labels, &table, x, y] {
                            context.run([&]<class T>(auto& queue) {
                              label_backward(
                                  queue,
                                  LabelBackward<T>{batch, width, classes, labels.as<std::int32_t>(),
                                                   context.tape->gradient(y).as<T>(),
                                                   table.gradient.as<acc_t<T>>()});
                            });
                            context.tape->hand_over(y, x);
                          }});
  }
  return y;
}

}  // namespace fm
