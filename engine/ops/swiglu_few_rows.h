// The SwiGLU network where a sample's few rows leave latency alone to count.
#pragma once

#include "engine/ops/swiglu.h"

namespace fm {

// swiglu_mlp(context, x, w) by kernels for few rows; a tensor without data where they do not serve:
// with a tape, on the CPU, in fp32, or for many rows.
Tensor swiglu_mlp_few_rows(Context&, const Tensor& x, const SwigluWeights& w);

}  // namespace fm
