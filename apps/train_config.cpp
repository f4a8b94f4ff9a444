#include "apps/train_config.h"

#include <algorithm>
#include <cmath>

#include "engine/io/atomic_file.h"

namespace fm {
namespace {

constexpr std::int64_t kConfigLimit = 1 << 20;  // bytes of a configuration file

// What a preset changes of the defaults, which are the paper's.
struct Tiny {
  static constexpr int depth = 2;  // a shallow model's many steps draw better digits
  static void apply(RunConfig& c) {
    c.model.patch = 4;
    c.model.d_model = 64;
    c.model.heads = 4;
    c.model.mlp_hidden = 192;
    c.model.d_state = 8;
    c.train.batch = 16;
    c.train.lr = 5e-3;
    c.train.warmup_steps = 100;
    c.train.cooldown = 0.4;
    c.train.ema_decay = 0.999;
    c.train.t_sampling = "logit-normal";  // times at which a digit takes shape: clearer ones
    c.train.epochs = 3;
  }
  // As many as about 90 seconds hold on two cores.
  static std::int64_t steps(const std::string& backbone) {
    return backbone == "mamba" ? 3900 : backbone == "hybrid" ? 5000 : 7000;
  }
};

// Well under a minute a backbone on a GPU that trains the paper's model in minutes: half the depth,
// a quarter of the states (the SwiGLU is narrowed to match: parameters within 2 %), a learning rate
// that a short run needs, and the average that a high one needs.
struct Quick {
  static constexpr int depth = 4;
  static void apply(RunConfig& c) {
    c.model.d_state = 16;
    c.model.mlp_hidden = 320;
    c.train.lr = 1e-3;
    c.train.warmup_steps = 100;
    c.train.ema_decay = 0.999;
    c.train.epochs = 12;
  }
};

}  // namespace

void validate(const TrainConfig& c) {
  const auto require = [](bool holds, const char* field, const char* rule, const auto& value) {
    FM_CHECK(holds, "[train] ", field, " must be ", rule, ", got ", value);
  };
  require(c.epochs > 0 && c.epochs <= 1'000'000, "epochs", "1 to 1000000", c.epochs);
  require(c.max_steps >= 0, "max_steps", "0 (no limit) or more", c.max_steps);
  require(c.batch > 0 && c.batch <= 65536, "batch", "1 to 65536", c.batch);
  require(c.lr > 0 && c.lr < 1, "lr", "above 0 and below 1", c.lr);
  require(c.weight_decay >= 0 && c.weight_decay < 10, "weight_decay", "0 to 10", c.weight_decay);
  FM_CHECK(c.betas.size() == 2, "[train] betas must be two numbers, as in 0.9,0.999, got ",
           c.betas.size());
  for (const double beta : c.betas)
    require(beta >= 0 && beta < 1, "betas", "0 or more and below 1", beta);
  require(c.grad_clip >= 0 && c.grad_clip <= 1e30, "grad_clip", "0 (no clipping) to 1e30",
          c.grad_clip);
  require(c.warmup_steps >= 0, "warmup_steps", "0 or more", c.warmup_steps);
  require(c.cooldown >= 0 && c.cooldown <= 1, "cooldown", "0 (none) to 1", c.cooldown);
  require(c.ema_decay >= 0 && c.ema_decay < 1, "ema_decay", "0 (no average) or more and below 1",
          c.ema_decay);
  FM_CHECK(c.residual == "wide" || c.residual == "narrow",
           "[train] residual must be wide or narrow, got ", c.residual);
  FM_CHECK(c.t_sampling == "uniform" || c.t_sampling == "logit-normal",
           "[train] t_sampling must be uniform or logit-normal, got ", c.t_sampling);
  require(c.class_drop_prob >= 0 && c.class_drop_prob <= 1, "class_drop_prob", "0 to 1",
          c.class_drop_prob);
  require(c.log_every > 0, "log_every", "1 or more", c.log_every);
  require(c.ckpt_every >= 0, "ckpt_every", "0 (every epoch) or more", c.ckpt_every);
  require(c.sample_every >= -1, "sample_every", "-1 (never), 0 (every epoch) or more",
          c.sample_every);
  require(c.keep_last >= 0, "keep_last", "0 (all) or more", c.keep_last);
}

std::int64_t steps_of(const TrainConfig& train, std::int64_t steps_per_epoch) {
  const std::int64_t by_epochs = train.epochs * steps_per_epoch;
  return train.max_steps > 0 ? std::min(by_epochs, train.max_steps) : by_epochs;
}

RunConfig preset(const std::string& name, const std::string& backbone) {
  RunConfig config;
  int depth = static_cast<int>(config.model.blocks.size());
  if (name == "tiny") {
    Tiny::apply(config);
    config.train.max_steps = Tiny::steps(backbone);
    depth = Tiny::depth;
  } else if (name == "quick") {
    Quick::apply(config);
    depth = Quick::depth;
  } else {
    FM_CHECK(name == "paper", "[train] preset must be paper, quick or tiny, got ", name);
  }
  config.model.blocks = backbone_blocks(backbone, depth);
  return config;
}

void apply_config_json(const Json& json, const std::string& where, RunConfig& config) {
  if (!json.is_object())
    fail(Fault::data, "[config] ", where, " must be a JSON object, got ", json.type_name());
  bool sections = false;
  for (const char* name : {"model", "train", "data"}) sections |= json.contains(name);
  if (!sections) {
    from_json(config.model, json, where);
    return;
  }
  for (const auto& item : json.items()) {
    if (item.key() == "model") from_json(config.model, item.value(), where);
    else if (item.key() == "train") from_json(config.train, item.value(), where);
    else if (item.key() == "data") from_json(config.data, item.value(), where);
    else
      fail(Fault::data, "[config] there are model, train and data, got ", item.key(), " (", where,
           ")");
  }
}

void read_config_file(const std::filesystem::path& path, RunConfig& config) {
  const auto bytes = read_file(path, kConfigLimit);
  const Json json = Json::parse(bytes.begin(), bytes.end(), nullptr, false);
  if (json.is_discarded()) fail(Fault::data, "[config] ", path.string(), " is not JSON");
  apply_config_json(json, path.string(), config);
}

Json config_json(const RunConfig& config) {
  Json json;
  json["model"] = to_json(config.model);
  json["train"] = to_json(config.train);
  json["data"] = to_json(config.data);
  return json;
}

TrainerSettings trainer_settings(const TrainConfig& c, DType compute, bool graph,
                                 std::int64_t total_steps) {
  TrainerSettings settings;
  settings.batch = c.batch;
  settings.compute = compute;
  settings.narrow_stream = c.residual == "narrow";
  settings.seed = c.seed;
  settings.time_sampling =
      c.t_sampling == "uniform" ? TimeSampling::uniform : TimeSampling::logit_normal;
  settings.label_drop = static_cast<float>(c.class_drop_prob);
  settings.graph = graph;
  settings.optimizer.lr = static_cast<float>(c.lr);
  settings.optimizer.warmup_steps = c.warmup_steps;
  settings.optimizer.cooldown_steps = std::llround(c.cooldown * static_cast<double>(total_steps));
  settings.optimizer.total_steps = total_steps;
  settings.optimizer.beta1 = c.betas[0];
  settings.optimizer.beta2 = c.betas[1];
  settings.optimizer.weight_decay = static_cast<float>(c.weight_decay);
  settings.optimizer.clip = static_cast<float>(c.grad_clip);
  settings.optimizer.ema_decay = static_cast<float>(c.ema_decay);
  return settings;
}

}  // namespace fm
