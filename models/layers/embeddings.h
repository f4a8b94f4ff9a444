// The two ends of the model: images and times in, velocities out.
#pragma once

#include "engine/buffer.h"
#include "engine/ops/residual_norm.h"
#include "models/config.h"
#include "models/layers/linear_layer.h"

namespace fm {

// Tokens of an image: Linear(patchify(image)) + fixed two-dimensional sine-cosine positions.
class PatchEmbed {
 public:
  PatchEmbed(ParamStore& params, const ModelConfig& config);
  void materialise(Context& context);  // uploads the position table
  // image [B, C, H, W] in acc type -> [B, L, d] in the residual stream's type
  Tensor operator()(Context& context, const Tensor& image) const;

 private:
  ModelConfig config_;
  LinearLayer linear_;
  Buffer positions_;
};

// The condition of every block: silu(MLP(sinusoid_256(1000 t)) [+ label embedding]).
class ConditionEmbed {
 public:
  ConditionEmbed(ParamStore& params, const ModelConfig& config);
  // t [B] in acc type; labels [B] int32, used where the model has classes -> [B, d]
  Tensor operator()(Context& context, const Tensor& t, const Tensor& labels) const;

 private:
  LinearLayer fc1_, fc2_;
  const Parameter* labels_ = nullptr;
};

// The velocity: unpatchify(Linear(modulate(LN(x), shift, scale))), zero at the start.
class VelocityHead {
 public:
  VelocityHead(ParamStore& params, const ModelConfig& config);
  // The residual stream [B, L, d], condition [B, d] -> [B, C, H, W] in acc type
  Tensor operator()(Context& context, Residual stream, const Tensor& condition) const;

 private:
  ModelConfig config_;
  LinearLayer adaln_, linear_;
};

// [side * side, d]: the first half of a row encodes the token's row, the second its column, each as
// sines of d/4 frequencies 10000^(-k / (d/4)), then cosines.
std::vector<double> position_table(int d, int side);

}  // namespace fm
