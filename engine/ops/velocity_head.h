// The end of the model: from the residual stream to velocities.
#pragma once

#include "engine/ops/residual_norm.h"
#include "engine/params.h"

namespace fm {

// The stream [B, L, d], shift and scale as in residual_norm, w [C p p, d] and b
// [C p p]
// -> unpatchify(residual_norm(stream) w^T + b) [B, channels, size, size] in acc
// type.
Tensor velocity_head(Context&, Residual stream, const Columns& shift, const Columns& scale,
                     const Parameter& w, const Parameter& b, int channels, int size, int patch);

}  // namespace fm
