// The path x_t = (1 - t) x0 + t x1 and its loss.
#pragma once

#include "engine/context.h"
#include "kernels/base/step_state.h"

namespace fm {

struct PathPoint {
  Tensor x_t, target;
};
// x0 (noise), x1 (data) [B, C, H, W] and t [B], all in acc type. No gradient.
PathPoint flow_interpolate(Context&, const Tensor& x0, const Tensor& x1, const Tensor& t);

// mean((v - target)^2), [1], in acc type. Its gradient starts the backward pass, multiplied by
// state's loss scale (null: 1).
Tensor flow_loss(Context&, const Tensor& v, const Tensor& target, const StepState* state);

}  // namespace fm
