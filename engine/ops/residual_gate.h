// The exit of every residual branch: x + gate f.
#pragma once

#include "engine/context.h"

namespace fm {

// x [B, L, d] in acc type, f [B, L, d] in the compute type, gate: d columns of a [B, *] tensor ->
// [B, L, d] in acc type. The gate gets its gradient by parts; x's is handed over.
Tensor residual_gate(Context&, const Tensor& x, const Tensor& f, const Columns& gate);

}  // namespace fm
