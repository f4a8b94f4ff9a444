#include "models/layers/embeddings.h"

#include "engine/ops/activation.h"
#include "engine/ops/embedding.h"
#include "engine/ops/patchify.h"
#include "engine/ops/velocity_head.h"

namespace fm {
namespace {
constexpr int kSinusoidWidth = 256;
}

std::vector<double> position_table(int d, int side) {
  const int frequencies = d / 4;
  std::vector<double> table;
  table.reserve(static_cast<std::size_t>(side) * static_cast<std::size_t>(side) *
                static_cast<std::size_t>(d));
  const auto encode = [&](int position) {
    for (const auto wave :
         {static_cast<double (*)(double)>(std::sin), static_cast<double (*)(double)>(std::cos)})
      for (int k = 0; k < frequencies; ++k)
        table.push_back(wave(position * std::exp(-std::log(10000.0) * k / frequencies)));
  };
  for (int row = 0; row < side; ++row) {
    for (int column = 0; column < side; ++column) {
      encode(row);
      encode(column);
    }
  }
  return table;
}

PatchEmbed::PatchEmbed(ParamStore& params, const ModelConfig& config)
    : config_(config), linear_(params, "patch_embed", config.token_width(), config.d_model) {}

void PatchEmbed::materialise(Context& context) {
  const std::vector<double> table = position_table(config_.d_model, config_.image / config_.patch);
  std::vector<float> rounded(table.begin(), table.end());
  positions_ = Buffer(context.queue, table.size() * size_of(context.acc()));
  // In fp64 the table is still that of fp32, which is what a model is trained with.
  const std::vector<double> widened(rounded.begin(), rounded.end());
  if (context.acc() == DType::f64) positions_.upload_from(widened.data(), positions_.bytes());
  else positions_.upload_from(rounded.data(), positions_.bytes());
}

Tensor PatchEmbed::operator()(Context& context, const Tensor& image) const {
  const Tensor positions{positions_.data(), {config_.tokens(), config_.d_model}, context.acc()};
  return embed_patches(context, image, config_.patch, *linear_.weight(), *linear_.bias(),
                       positions);
}

ConditionEmbed::ConditionEmbed(ParamStore& params, const ModelConfig& config)
    : fc1_(params, "time_fc1", kSinusoidWidth, 4 * config.d_model),
      fc2_(params, "time_fc2", 4 * config.d_model, config.d_model) {
  if (config.classes)
    labels_ =
        &params.add("label_embed.weight", {config.classes + 1, config.d_model}, init_normal(0.02));
}

Tensor ConditionEmbed::operator()(Context& context, const Tensor& t, const Tensor& labels) const {
  Tensor c =
      fc2_(context, silu(context, fc1_(context, sinusoid_embedding(context, t, kSinusoidWidth))));
  if (labels_) {
    FM_CHECK(labels, "[model] a class-conditional model needs labels");
    c = add_label(context, c, labels, *labels_);
  }
  return silu(context, c);
}

VelocityHead::VelocityHead(ParamStore& params, Modulation& modulation, const ModelConfig& config)
    : config_(config),
      first_column_(modulation.add("head_adaln", kVectors)),
      linear_(params, "head", config.d_model, config.token_width(), true,
              LinearLayer::Start::zero) {}

Tensor VelocityHead::operator()(Context& context, Residual stream, const Tensor& modulation) const {
  const std::int64_t d = config_.d_model;
  const Columns shift(modulation, first_column_, d), scale(modulation, first_column_ + d, d);
  return velocity_head(context, stream, shift, scale, *linear_.weight(), *linear_.bias(),
                       config_.channels, config_.image, config_.patch);
}

}  // namespace fm
