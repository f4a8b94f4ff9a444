// The convolution of a Mamba layer, the grouped linear layer after it and the RMSNorm of its
// result's segments, as one operation.
#pragma once

#include <vector>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

struct ConvLinearRmsNorm {
  Tensor u;  // [B, L, groups in]
  Tensor y;  // [B L, groups, out]
};
// x: groups * in columns of a [B, L, *] tensor; u = causal_conv1d(x), a direction a group; y: u
// times w [groups, out, in], normalised. `weights`: one parameter a segment, [groups, segment],
// laid side by side from column 0; together they cover the row. eps 1e-5.
ConvLinearRmsNorm conv_linear_rmsnorm(Context&, const Columns& x, const Parameter& conv_weight,
                                      const Parameter& conv_bias, const Parameter& w,
                                      const std::vector<const Parameter*>& weights);

}  // namespace fm
