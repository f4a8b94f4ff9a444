#include "apps/divergence.h"

#include <cmath>

#include "engine/optim/optimizer.h"
#include "kernels/base/check.h"

namespace fm {

std::string divergence(const StepRecord& record) {
  const std::uint64_t step = record.step + 1;
  if (!std::isfinite(record.loss)) return concat("the loss of step ", step, " is not finite");
  if (record.skipped_in_row >= kSkippedInRowLimit)
    return concat(record.skipped_in_row, " steps in a row were skipped for gradients that are not ",
                  "finite, the last of them step ", step);
  if (record.loss_scale < kSmallestLossScale)
    return concat("the loss scale fell to ", record.loss_scale, " at step ", step);
  return "";
}

}  // namespace fm
