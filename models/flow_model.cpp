#include "models/flow_model.h"

#include "engine/profile.h"

namespace fm {
namespace {
const ModelConfig& validated(const ModelConfig& config) {
  validate(config);
  return config;
}
}  // namespace

FlowModel::FlowModel(const ModelConfig& config)
    : config_(validated(config)),
      patch_embed_(params_, config_),
      condition_(params_, config_),
      modulation_(params_, config_.d_model, Backbone::vectors(config_) + VelocityHead::kVectors),
      backbone_(params_, modulation_, config_),
      head_(params_, modulation_, config_) {}

void FlowModel::materialise(Context& context, ParamStore::Use use) {
  params_.materialise(context, use);
  patch_embed_.materialise(context);
  modulation_.materialise();
}

Tensor FlowModel::velocity(Context& context, const Tensor& x_t, const Tensor& t,
                           const Tensor& labels) const {
  const ProfileRange range("forward");
  const Shape expected{t.count(), config_.channels, config_.image, config_.image};
  FM_CHECK(x_t.shape == expected, "[model] x_t must be ", expected, ", got ", x_t);
  Frame frame(context);
  const Tensor v = velocity_given(context, x_t, modulation(context, t, labels));
  frame.keep(v);
  return v;
}

Tensor FlowModel::modulation(Context& context, const Tensor& t, const Tensor& labels) const {
  Frame frame(context);
  const Tensor all = modulation_(context, condition_(context, t, labels));
  frame.keep(all);
  return all;
}

Tensor FlowModel::velocity_given(Context& context, const Tensor& x_t,
                                 const Tensor& modulation) const {
  Frame frame(context);
  const Residual tokens = {patch_embed_(context, x_t)};
  const Tensor v = head_(context, backbone_(context, tokens, modulation), modulation);
  frame.keep(v);
  return v;
}

}  // namespace fm
