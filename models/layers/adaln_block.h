// A residual block with adaLN-zero conditioning: one branch a part, x + gate part(modulate(LN(x),
// shift, scale)), with shift, scale and gate from a linear layer of the condition that starts at
// zero. Source: Peebles and Xie 2023 (DiT), section 3.2.
#pragma once

#include <string>
#include <vector>

#include "models/layers/linear_layer.h"
#include "models/layers/mixer.h"

namespace fm {

class AdalnBlock {
 public:
  // `parts` in order; their parameters are declared by whoever made them. The modulation's are
  // `name`.adaln: rows shift, scale, gate of the first part, then of the next.
  AdalnBlock(ParamStore& params, const std::string& name, int d, std::vector<Mixer> parts);

  // x [B, L, d] in acc type (the residual stream), condition [B, d] -> the residual stream after
  // the block.
  Tensor operator()(Context& context, Tensor x, const Tensor& condition) const;

 private:
  int d_;
  std::vector<Mixer> parts_;
  LinearLayer adaln_;
};

}  // namespace fm
