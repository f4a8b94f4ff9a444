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
  Backbone(ParamStore& params, const ModelConfig& config);

  // h [B, L, d] in acc type, condition [B, d] -> [B, L, d] in acc type.
  Tensor operator()(Context& context, Tensor h, const Tensor& condition) const;

 private:
  std::vector<AdalnBlock> blocks_;
};

}  // namespace fm
