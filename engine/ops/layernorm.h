// LayerNorm and the image's modulation: the entrance of every residual branch.
#pragma once

#include "engine/context.h"

namespace fm {

// x [B, L, d] in acc type (the residual stream), shift and scale: d columns each of one [B, *]
// tensor
// -> (LN(x) (1 + scale) + shift) [B, L, d] in the compute type. The modulations get their gradient
// by parts.
Tensor layernorm_modulate(Context&, const Tensor& x, const Columns& shift, const Columns& scale);

}  // namespace fm
