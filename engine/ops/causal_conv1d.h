// Depthwise causal convolution and SiLU, every direction at once.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// x: E columns of a [B, L, *] tensor, weight [E, width], bias [E] -> u [B, L, E]. x gets its
// gradient by parts.
Tensor causal_conv1d(Context&, const Columns& x, const Parameter& weight, const Parameter& bias,
                     int directions);

}  // namespace fm
