// The selective scan of a Mamba mixer, every direction at once, with dt's projection before it and
// the gate after it.
#pragma once

#include <optional>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

struct SelectiveScanOperands {
  Tensor u;                  // [B, L, channels]
  std::optional<Columns> z;  // channels columns of a [B, L, *] tensor: the gate, if there is one
  Tensor low;  // [B L, directions, rank + 2 state]: dt before its projection, then b, then c
  int rank, state, directions;
  const Parameter* dt_proj;  // [directions, channels of one, rank]
  const Parameter* dt_bias;  // [channels]
  const Parameter* a_log;    // [channels, state]
  const Parameter* d;        // [channels]
};

// y silu(z), or y without a gate: [B, L, channels]. z gets its gradient by parts; u and low must
// have no later use. dt is projected again in the backward pass rather than kept: its [B, L,
// channels] come from `rank` numbers a token and direction.
Tensor selective_scan(Context&, const SelectiveScanOperands&);

}  // namespace fm
