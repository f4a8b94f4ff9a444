#include "engine/ops/cross_entropy.h"

#include "engine/tape.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace fm {

Tensor cross_entropy(Context& context, const Tensor& logits, const Tensor& labels,
                     const StepState* state) {
  FM_CHECK(logits.shape.rank() == 2 && labels.count() == logits.shape[0],
           "[cross_entropy] logits must be [rows, classes], labels one a row, got ", logits, ", ",
           labels);
  const std::int64_t rows = logits.shape[0];
  const int classes = static_cast<int>(logits.shape[1]);
  const Tensor loss = context.make({1}, context.acc());
  {
    Scratch workspace(context, cross_entropy_workspace(rows));
    context.run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      cross_entropy_forward(
          queue, CrossEntropyForward<R>{rows, classes, logits.as<R>(), labels.as<std::int32_t>(),
                                        loss.as<R>(), workspace.data()});
    });
  }
  if (context.tape) {
    // No output: the loss outlives the tape, the optimizer logs it.
    context.tape->record(
        {"cross_entropy", {}, {}, [&context, logits, labels, state, rows, classes] {
           const Tape::Target target = context.tape->target(logits);
           FM_CHECK(!target.accumulate, "[cross_entropy] the logits must have no other use");
           context.run([&]<class T>(auto& queue) {
             using R = acc_t<T>;
             cross_entropy_backward(queue, CrossEntropyBackward<R>{rows, classes, logits.as<R>(),
                                                                   labels.as<std::int32_t>(), state,
                                                                   target.gradient.as<R>()});
           });
         }});
  }
  return loss;
}

}  // namespace fm
