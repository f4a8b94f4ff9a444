// A grouped linear layer and the RMSNorm of its result's segments, as one operation.
#pragma once

#include <vector>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// x [rows, groups, in], w [groups, out, in] -> [rows, groups, out], normalised. `weights`: one
// parameter a segment, [groups, segment], laid side by side from column 0; together they cover the
// row. eps 1e-5.
Tensor linear_rmsnorm(Context&, const Tensor& x, const Parameter& w,
                      const std::vector<const Parameter*>& weights);

// The same of u = causal_conv1d(x), [tokens, groups, in], one group a direction; faster than the
// two one after the other.
struct ConvLinearRmsNorm {
  Tensor u;  // [B, L, groups in]
  Tensor y;  // [B L, groups, out]
};
ConvLinearRmsNorm conv_linear_rmsnorm(Context&, const Columns& x, const Parameter& conv_weight,
                                      const Parameter& conv_bias, const Parameter& w,
                                      const std::vector<const Parameter*>& weights);

}  // namespace fm
