// The selective scan of a Mamba mixer, every direction at once, with dt's projection before it and
// the gate after it.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

struct SelectiveScanOperands {
  Tensor u;    // [B, L, channels]
  Columns z;   // channels columns of a [B, L, *] tensor: the gate
  Tensor low;  // [B L, directions, rank + 2 state]: dt before its projection, then b, then c
  int rank, state, directions;
  const Parameter* dt_proj;  // [directions, channels of one, rank]
  const Parameter* dt_bias;  // [channels]
  const Parameter* a_log;    // [channels, state]
  const Parameter* d;        // [channels]
};

struct SelectiveScanResult {
  Tensor o;  // y silu(z), [B, L, channels]
  Tensor y;  // before the gate; empty without a tape
};

// z gets its gradient by parts; u and low must have no later use. dt is projected again in the
// backward pass rather than kept: its [B, L, channels] come from `rank` numbers a token and
// direction.
SelectiveScanResult selective_scan(Context&, const SelectiveScanOperands&);

// With a tape: o, which nothing reads any more in the forward pass, is dropped, and gated again
// from y and z where the backward pass comes to its reader (51 MB at the paper's shape, for the
// time of moving 154 MB).
void drop_gated(Context&, const SelectiveScanResult&, const Columns& z);

}  // namespace fm
