// The velocity field v(x_t, t[, label]) and its parameters.
#pragma once

#include "models/backbone.h"
#include "models/layers/embeddings.h"
#include "models/layers/modulation.h"

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

  // The two halves of velocity(). What depends on time and label alone: t [rows] and labels [rows],
  // as above -> [rows, *] in the compute type.
  Tensor modulation(Context& context, const Tensor& t, const Tensor& labels = {}) const;
  // And the rest, given the modulations of each image, or one row for all of them (where no
  // gradient is wanted).
  Tensor velocity_given(Context& context, const Tensor& x_t, const Tensor& modulation) const;

  std::int64_t modulation_columns() const { return modulation_.columns(); }
  const ModelConfig& config() const { return config_; }
  ParamStore& params() { return params_; }
  const ParamStore& params() const { return params_; }

 private:
  ModelConfig config_;
  ParamStore params_;
  PatchEmbed patch_embed_;
  ConditionEmbed condition_;
  Modulation modulation_;
  Backbone backbone_;
  VelocityHead head_;
};

}  // namespace fm
