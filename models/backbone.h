// A backbone: a list of block kinds, from tokens to tokens.
#pragma once

#include <string>
#include <vector>

#include "models/layers/adaln_block.h"

namespace fm {

// The block pattern of a named backbone; null for another name.
const std::vector<std::string>* find_backbone(const std::string& name);
// Throws Fault::usage for a kind that is not in the table of blocks.
void check_block_kind(const std::string& kind);

class Backbone {
 public:
  // Vectors of the modulation that its blocks need.
  static int vectors(const ModelConfig& config);

  Backbone(ParamStore& params, Modulation& modulation, const ModelConfig& config);

  // The residual stream [B, L, d] and the modulations [B or 1, *] -> the stream after the last
  // block.
  Residual operator()(Context& context, Residual stream, const Tensor& modulation) const;

 private:
  std::vector<AdalnBlock> blocks_;
};

}  // namespace fm
