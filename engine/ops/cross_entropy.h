// The loss of a classifier.
#pragma once

#include "engine/context.h"
#include "kernels/base/step_state.h"

namespace fm {

// logits [rows, classes] in acc type, labels [rows] int32 -> the mean over rows of the softmax
// cross-entropy, [1], in acc type. Its gradient starts the backward pass, multiplied by state's
// loss scale (null: 1).
Tensor cross_entropy(Context&, const Tensor& logits, const Tensor& labels, const StepState* state);

}  // namespace fm
