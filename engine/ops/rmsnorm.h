// RMSNorm over segments of a row, each with its own weights.
#pragma once

#include <vector>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// x [rows, groups, width] -> the same shape. `weights`: one parameter a segment, [groups, segment]
// (or [segment] where groups is 1), laid side by side from column 0; together they cover the row.
// eps 1e-5.
Tensor rmsnorm(Context&, const Tensor& x, const std::vector<const Parameter*>& weights);

}  // namespace fm
