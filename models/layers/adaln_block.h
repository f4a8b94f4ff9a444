// A residual block with adaLN-zero conditioning: one branch a part, x + gate part(modulate(LN(x),
// shift, scale)), with shift, scale and gate from a linear layer of the condition that starts at
// zero. The last part's sum stays pending (engine/ops/residual_norm.h). Source: Peebles and Xie
// 2023 (DiT), section 3.2.
#pragma once

#include <string>
#include <vector>

#include "engine/ops/residual_norm.h"
#include "models/layers/linear_layer.h"
#include "models/layers/mixer.h"

namespace fm {

class AdalnBlock {
 public:
  // `parts` in order; their parameters are declared by whoever made them. The modulation's are
  // `name`.adaln: rows shift, scale, gate of the first part, then of the next.
  AdalnBlock(ParamStore& params, const std::string& name, int d, std::vector<Mixer> parts);

  // The residual stream [B, L, d] and a condition [B, d] -> the stream after the block.
  Residual operator()(Context& context, Residual stream, const Tensor& condition) const;

 private:
  int d_;
  std::vector<Mixer> parts_;
  LinearLayer adaln_;
};

}  // namespace fm
