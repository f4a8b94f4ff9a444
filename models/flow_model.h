// The velocity field v(x_t, t[, label]) and its parameters.
#pragma once

#include "models/backbone.h"
#include "models/layers/embeddings.h"

namespace fm {

class FlowModel {
 public:
  // Declares the parameters; validates the configuration.
  explicit FlowModel(const ModelConfig& config);
  FlowModel(const FlowModel&) = delete;  // layers point into the parameter store
  FlowModel& operator=(const FlowModel&) = delete;

  void materialise(Context& context, ParamStore::Use use);

  // x_t [B, C, H, W] and t [B] in acc type; labels [B] int32 where the model has classes (classes:
  // the null label)
  // -> [B, C, H, W] in acc type.
  Tensor velocity(Context& context, const Tensor& x_t, const Tensor& t,
                  const Tensor& labels = {}) const;

  const ModelConfig& config() const { return config_; }
  ParamStore& params() { return params_; }
  const ParamStore& params() const { return params_; }

 private:
  ModelConfig config_;
  ParamStore params_;
  PatchEmbed patch_embed_;
  ConditionEmbed condition_;
  Backbone backbone_;
  VelocityHead head_;
};

}  // namespace fm
