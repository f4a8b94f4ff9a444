// The SwiGLU feed-forward network: w3(silu(a) b) with (a, b) = w12(x). Source: Shazeer 2020.
#pragma once

#include "engine/ops/swiglu.h"
#include "models/layers/linear_layer.h"

namespace fm {

class SwigluMlp {
 public:
  SwigluMlp(ParamStore& params, const std::string& name, int d, int hidden)
      : w12_(params, name + ".w12", d, 2 * hidden), w3_(params, name + ".w3", hidden, d) {}

  Tensor operator()(Context& context, const Tensor& x) const {
    return swiglu_mlp(context, x, {w12_.weight(), w12_.bias(), w3_.weight(), w3_.bias()});
  }

 private:
  LinearLayer w12_, w3_;  // rows of w12: gate, then up
};

}  // namespace fm
