// When training cannot go on.
#pragma once

#include <string>

#include "kernels/base/step_state.h"

namespace fm {

constexpr int kSkippedInRowLimit = 50;  // steps whose gradients were not finite, one after another

// What is wrong after this step, as a sentence that names it: a loss that is not finite, too many
// skipped steps in a row, a loss scale that fell below kSmallestLossScale. Empty: nothing.
std::string divergence(const StepRecord& record);

}  // namespace fm
