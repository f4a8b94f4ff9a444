// The residual stream of an adaLN model, and the one operation between two of its branches.
#pragma once

#include <optional>
#include <vector>

#include "engine/context.h"

namespace fm {

// x + gate f, where the sum with the last branch's output f is taken by the next branch's norm.
struct Residual {
  struct Branch {
    Tensor f;      // [B, L, d] in the compute type
    Columns gate;  // d columns of a [B, *] or [1, *] tensor in the compute type
  };
  Tensor x;  // [B, L, d] in the stream's type
  std::optional<Branch> pending = {};

  std::vector<Tensor> tensors() const {
    return pending ? std::vector<Tensor>{x, pending->f, pending->gate.of} : std::vector<Tensor>{x};
  }
};

// Takes what is pending into stream.x, and returns LN(stream.x) (1 + scale) + shift [B, L, d] in
// the compute type. shift and scale: d columns each of one [B, *] tensor, or without a tape of one
// [1, *] tensor for all images, as the gate. All modulations get their gradient by parts; the
// stream's is handed over.
Tensor residual_norm(Context&, Residual& stream, const Columns& shift, const Columns& scale);

}  // namespace fm
