// A residual block with adaLN-zero conditioning: one branch a part, x + gate part(modulate(LN(x),
// shift, scale)), with shift, scale and gate from the model's modulations. The last part's sum
// stays pending (engine/ops/residual_norm.h). Source: Peebles and Xie 2023 (DiT), section 3.2.
#pragma once

#include <string>
#include <vector>

#include "engine/ops/residual_norm.h"
#include "models/layers/mixer.h"
#include "models/layers/modulation.h"

namespace fm {

class AdalnBlock {
 public:
  // Vectors of the modulation a part needs.
  static constexpr int kVectors = 3;

  // `parts` in order; their parameters are declared by whoever made them. The modulation's are
  // `name`.adaln: rows shift, scale, gate of the first part, then of the next.
  AdalnBlock(Modulation& modulation, const std::string& name, int d, std::vector<Mixer> parts);

  // The residual stream [B, L, d] and the modulations [B or 1, *] -> the stream after the block.
  Residual operator()(Context& context, Residual stream, const Tensor& modulation) const;

 private:
  int d_;
  std::vector<Mixer> parts_;
  std::int64_t first_column_;
};

}  // namespace fm
