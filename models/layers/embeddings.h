// The two ends of the model: images and times in, velocities out.
#pragma once

#include "engine/buffer.h"
#include "engine/ops/residual_norm.h"
#include "models/config.h"
#include "models/layers/linear_layer.h"
#include "models/layers/modulation.h"

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
  // t [rows] in acc type; labels [rows] int32, used where the model has classes -> [rows, d]
  Tensor operator()(Context& context, const Tensor& t, const Tensor& labels) const;

 private:
  LinearLayer fc1_, fc2_;
  const Parameter* labels_ = nullptr;
};

// The velocity: unpatchify(Linear(modulate(LN(x), shift, scale))), zero at the start.
class VelocityHead {
 public:
  static constexpr int kVectors = 2;  // of the modulation

  VelocityHead(ParamStore& params, Modulation& modulation, const ModelConfig& config);
  // The residual stream [B, L, d], the modulations [B or 1, *] -> [B, C, H, W] in acc type
  Tensor operator()(Context& context, Residual stream, const Tensor& modulation) const;

 private:
  ModelConfig config_;
  std::int64_t first_column_;
  LinearLayer linear_;
};

// [side * side, d]: the first half of a row encodes the token's row, the second its column, each as
// sines of d/4 frequencies 10000^(-k / (d/4)), then cosines.
std::vector<double> position_table(int d, int side);

}  // namespace fm
