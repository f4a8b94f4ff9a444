// A linear layer: weight [out, in] and bias [out] under `name`, initialised as PyTorch's default,
// U(-1/sqrt(in), 1/sqrt(in)).
#pragma once

#include <cmath>
#include <string>

#include "engine/ops/linear.h"

namespace fm {

class LinearLayer {
 public:
  enum class Start { uniform, zero };

  LinearLayer(ParamStore& params, const std::string& name, int in, int out, bool bias = true,
              Start start = Start::uniform) {
    const Init init = start == Start::zero ? init_constant(0) : init_uniform(1 / std::sqrt(in));
    weight_ = &params.add(name + ".weight", {out, in}, init);
    if (bias) bias_ = &params.add(name + ".bias", {out}, init);
  }

  // x [..., in] -> [..., out]
  Tensor operator()(Context& context, const Tensor& x) const {
    return linear(context, x, *weight_, bias_);
  }

  const Parameter* weight() const { return weight_; }
  const Parameter* bias() const { return bias_; }  // null where there is none

 private:
  const Parameter* weight_;
  const Parameter* bias_ = nullptr;
};

}  // namespace fm
