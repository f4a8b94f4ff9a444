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
      backbone_(params_, config_),
      head_(params_, config_) {}

void FlowModel::materialise(Context& context, ParamStore::Use use) {
  params_.materialise(context, use);
  patch_embed_.materialise(context);
}

Tensor FlowModel::velocity(Context& context, const Tensor& x_t, const Tensor& t,
                           const Tensor& labels) const {
  const ProfileRange range("forward");
  const Shape expected{t.count(), config_.channels, config_.image, config_.image};
  FM_CHECK(x_t.shape == expected, "[model] x_t must be ", expected, ", got ", x_t);
  Frame frame(context);
  const Tensor condition = condition_(context, t, labels);
  const Residual tokens = {patch_embed_(context, x_t)};
  const Tensor v = head_(context, backbone_(context, tokens, condition), condition);
  frame.keep(v);
  return v;
}

}  // namespace fm
