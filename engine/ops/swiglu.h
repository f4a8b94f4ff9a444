// SwiGLU on the product of the gate-and-up layer.
#pragma once

#include "engine/context.h"

namespace fm {

// ab [B, L, 2 hidden] (gate, then up) -> silu(a) b, [B, L, hidden].
Tensor swiglu(Context&, const Tensor& ab);

}  // namespace fm
