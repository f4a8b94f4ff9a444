// The SwiGLU feed-forward network as one operation, because of what it then need not save.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

struct SwigluWeights {
  const Parameter *w12, *b12;  // [2 hidden, d], [2 hidden]: gate, then up
  const Parameter *w3, *b3;    // [d, hidden], [d]
};

// x [B, L, d] -> w3 (silu(a) b) + b3 with (a, b) = w12 x + b12, [B, L, d]. The hidden units are not
// kept for backward but made again, and so are a and b where the kernels can
// (kernels/swiglu_mlp, kernels/swiglu_linear). The gradient of x takes the memory of the result's:
// x has no other use.
Tensor swiglu_mlp(Context&, const Tensor& x, const SwigluWeights& weights);

}  // namespace fm
