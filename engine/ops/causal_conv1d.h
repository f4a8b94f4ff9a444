// Depthwise causal convolution and SiLU, every direction at once.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// x: E columns of a [B, L, *] tensor, weight [E, width], bias [E] -> u [B, L, E]. x gets its
// gradient by parts.
Tensor causal_conv1d(Context&, const Columns& x, const Parameter& weight, const Parameter& bias,
                     int directions);

// With a tape: u, which nothing reads any more in the forward pass, is dropped, and computed again
// where the backward pass comes to its readers (51 MB at the paper's shape, for 39 us on an H100).
void drop_causal_conv1d(Context&, const Tensor& u, const Columns& x, const Parameter& weight,
                        const Parameter& bias, int directions);

}  // namespace fm
