// The Mamba mixer (S6) over one or two directions, with the norms that keep a hybrid stack stable:
// RMSNorm on dt, B and C of each direction (as in Jamba and Falcon-Mamba) and on the gated output
// (as in Mamba-2). Source: Gu and Dao 2023, "Mamba", section 3.4; two directions: Zhu et al. 2024,
// "Vision Mamba".
#include <cmath>
#include <optional>

#include "engine/ops/causal_conv1d.h"
#include "engine/ops/conv_linear_rmsnorm.h"
#include "engine/ops/rmsnorm_linear.h"
#include "engine/ops/selective_scan.h"
#include "models/layers/linear_layer.h"
#include "models/layers/mixer.h"

namespace fm {
namespace {

constexpr double kSmallestStep = 1e-3,
                 kLargestStep = 0.1;  // of delta at the start, log-uniform between them

// softplus(dt_bias) is log-uniform in [kSmallestStep, kLargestStep].
double start_dt_bias(const InitDraw& draw) {
  const double step = kSmallestStep * std::pow(kLargestStep / kSmallestStep, draw.uniform());
  return step + std::log(-std::expm1(-step));
}

struct MambaMixer {
  int groups, channels, state,
      rank;  // directions; scanned channels of one direction; n; rank of dt
  LinearLayer in_proj;
  const Parameter* out_proj;
  const Parameter *conv_weight, *conv_bias, *x_proj, *dt_proj, *dt_bias, *a_log, *d;
  const Parameter *dt_norm = nullptr, *b_norm = nullptr, *c_norm = nullptr, *out_norm = nullptr;

  MambaMixer(ParamStore& params, const std::string& name, const ModelConfig& c);
  Tensor operator()(Context& context, const Tensor& x) const;
};

MambaMixer::MambaMixer(ParamStore& params, const std::string& name, const ModelConfig& c)
    : groups(c.directions),
      channels(c.expand * c.d_model),
      state(c.d_state),
      rank(c.dt_rank()),
      in_proj(params, name + ".in_proj", c.d_model, 2 * c.scanned_channels(), false),
      out_proj(&params.add(name + ".out_proj.weight", {c.d_model, c.scanned_channels()},
                           init_uniform(1 / std::sqrt(c.scanned_channels())))) {
  const int all = groups * channels, n = state;
  const auto add = [&](const char* part, const Shape& shape, const Init& init) {
    return &params.add(name + "." + part, shape, init);
  };
  conv_weight = add("conv_weight", {all, c.d_conv}, init_uniform(1 / std::sqrt(c.d_conv)));
  conv_bias = add("conv_bias", {all}, init_uniform(1 / std::sqrt(c.d_conv)));
  x_proj = add("x_proj", {groups, rank + 2 * n, channels}, init_uniform(1 / std::sqrt(channels)));
  dt_proj = add("dt_proj", {groups, channels, rank}, init_uniform(1 / std::sqrt(rank)));
  dt_bias = add("dt_bias", {all}, start_dt_bias);
  a_log = add("A_log", {all, n}, [n](const InitDraw& draw) {
    return std::log(1.0 + static_cast<double>(draw.element() % static_cast<std::uint64_t>(n)));
  });
  d = add("D", {all}, init_constant(1));
  if (c.ssm_norm) {
    dt_norm = add("dt_norm", {groups, rank}, init_constant(1));
    b_norm = add("B_norm", {groups, n}, init_constant(1));
    c_norm = add("C_norm", {groups, n}, init_constant(1));
    out_norm = add("out_norm", {all}, init_constant(1));
  }
}

Tensor MambaMixer::operator()(Context& context, const Tensor& x) const {
  const std::int64_t batch = x.shape[0], length = x.shape[1], tokens = batch * length,
                     all = groups * channels;
  // Rows of in_proj: x of every direction, then z of every direction. Both are used in place.
  const Tensor xz = in_proj(context, x);
  const Columns conv_x(xz, 0, all);
  // low: dt (rank), B (n) and C (n) of each direction, side by side.
  Tensor u, low;
  if (dt_norm) {
    const ConvLinearRmsNorm made = conv_linear_rmsnorm(context, conv_x, *conv_weight, *conv_bias,
                                                       *x_proj, {dt_norm, b_norm, c_norm});
    u = made.u, low = made.y;
  } else {
    u = causal_conv1d(context, conv_x, *conv_weight, *conv_bias, groups);
    low = grouped_linear(context, u.view({tokens, groups, channels}), 0, *x_proj);
  }
  // In training a GPU is short of memory, and waits for it: u is made again, and the gate is left
  // to the norm and product that read its result, which is then never stored. A CPU has the memory:
  // making both again took a fifth of its step.
  const bool drops = context.tape && !context.on_cpu();
  const std::optional<Columns> z = Columns(xz, all, all), none;
  const bool gated_late = drops && out_norm;
  Tensor y;
  const auto scan_and_project = [&] {
    const Tensor o = selective_scan(context, {.u = u,
                                              .z = gated_late ? none : z,
                                              .low = low,
                                              .rank = rank,
                                              .state = state,
                                              .directions = groups,
                                              .dt_proj = dt_proj,
                                              .dt_bias = dt_bias,
                                              .a_log = a_log,
                                              .d = d});
    if (drops) drop_causal_conv1d(context, u, conv_x, *conv_weight, *conv_bias, groups);
    y = out_norm ? rmsnorm_linear(context, o, *out_norm, *out_proj, gated_late ? z : none)
                 : linear(context, o, *out_proj, nullptr);
  };
  if (gated_late) context.image_by_image(scan_and_project);
  else scan_and_project();
  return y;
}

}  // namespace

Mixer make_mamba_mixer(ParamStore& params, const std::string& name, const ModelConfig& config) {
  return MambaMixer(params, name, config);
}

}  // namespace fm
