// The selective scan of a Mamba mixer, every direction at once, gate included.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

struct SelectiveScanOperands {
  Tensor u;   // [B, L, channels]
  Tensor dt;  // [B, L, channels], before bias and softplus
  Columns z;  // channels columns of a [B, L, *] tensor: the gate
  Tensor bc;  // [B L, directions, width]: b in columns [b_begin, b_begin + state), c right after
  std::int64_t b_begin;
  int state, directions;
  const Parameter* a_log;    // [channels, state]
  const Parameter* d;        // [channels]
  const Parameter* dt_bias;  // [channels]
};

// -> o = y silu(z), [B, L, channels]. z and bc get their gradients by parts.
Tensor selective_scan(Context&, const SelectiveScanOperands&);

}  // namespace fm
