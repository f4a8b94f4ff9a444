// A linear layer of rows normalised by their RMS, as one operation: the normalised rows are never
// written.
#pragma once

#include <optional>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// y = (x / sqrt(mean(x^2) + 1e-5) * weight) W^T: x [..., in], weight [in], w [out, in] -> [...,
// out]. x must have no other use. With a gate z, in columns of a [..., *] tensor, x silu(z) stands
// in x's place and is not kept; z gets its gradient by parts.
Tensor rmsnorm_linear(Context&, const Tensor& x, const Parameter& weight, const Parameter& w,
                      const std::optional<Columns>& z = std::nullopt);

}  // namespace fm
