#include "apps/compare/compare_config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "models/flow_model.h"

namespace fm {
namespace {

constexpr double kMostParameters = 1.10;  // the largest model's, of the smallest one's
constexpr std::int64_t kGrids = 4, kCheckpoints = 10, kLogRows = 200;  // a run, about
constexpr std::int64_t kLeastGap = 100;  // steps between grids or checkpoints

struct Preset {
  int seeds;
  double class_share;
  EvaluationConfig evaluation;
};

// Everything in which the presets differ beyond the models and schedules of train_config.cpp.
const std::map<std::string, Preset>& presets() {
  static const std::map<std::string, Preset> all = {
      {"paper", {.seeds = 3, .class_share = 0.4, .evaluation = {}}},
      {"quick",
       {.seeds = 1,
        .class_share = 0.5,
        .evaluation = {.judged = 1'000,
                       .loss_images = 2'000,
                       .sweep_solvers = {"euler", "heun"},
                       .sweep_evaluations = 50,
                       .latency_runs = 10}}},
      // Two CPU cores for ten minutes: a forward pass of an image costs some 0.3 ms.
      {"tiny",
       {.seeds = 1,
        .class_share = 0.6,
        .evaluation = {.judged = 1'000,
                       .loss_images = 200,
                       .sweep_steps = {1, 2, 5, 10, 20},
                       .sweep_solvers = {"euler", "heun"},
                       .sweep_evaluations = 20,
                       .latency_runs = 3,
                       .nearest = 32}}},
  };
  return all;
}

// "attention*2+mamba" as a list of blocks.
std::vector<std::string> blocks_of(const std::string& text) {
  std::vector<std::string> blocks;
  std::size_t at = 0;
  while (at <= text.size()) {
    const std::size_t end = std::min(text.find('+', at), text.size());
    std::string kind = text.substr(at, end - at);
    int times = 1;
    if (const std::size_t star = kind.find('*'); star != std::string::npos) {
      char rest = 0;
      FM_CHECK(std::sscanf(kind.c_str() + star + 1, "%d%c", &times, &rest) == 1 && times > 0 &&
                   times <= 64,
               "[compare] a block is repeated 1 to 64 times, as in mamba*2, got ", kind);
      kind.resize(star);
    }
    FM_CHECK(kind == "mamba" || kind == "attention",
             "[compare] a backbone is mamba, transformer, hybrid or blocks as in "
             "attention*2+mamba, got ",
             text);
    blocks.insert(blocks.end(), static_cast<std::size_t>(times), kind);
    at = end + 1;
  }
  return blocks;
}

bool named(const std::string& backbone) {
  return find_backbone(backbone) != nullptr;
}

// Logs, grids and checkpoints that keep a run's folder small, whatever its length.
void pace(TrainConfig& train, std::int64_t steps_per_epoch) {
  const TrainConfig defaults;
  const std::int64_t steps = steps_of(train, steps_per_epoch);
  const auto every = [&](std::int64_t& field, std::int64_t unset, std::int64_t parts,
                         std::int64_t least) {
    if (field == unset) field = std::max(steps / parts, least);
  };
  every(train.log_every, defaults.log_every, kLogRows, 1);
  every(train.ckpt_every, defaults.ckpt_every, kCheckpoints, kLeastGap);
  every(train.sample_every, defaults.sample_every, kGrids, kLeastGap);
  if (train.keep_last == defaults.keep_last) train.keep_last = 1;
}

}  // namespace

void validate(const EvaluationConfig& c) {
  const auto require = [](bool holds, const char* field, const char* rule, const auto& value) {
    FM_CHECK(holds, "[compare] ", field, " must be ", rule, ", got ", value);
  };
  const auto whole = [&](const std::vector<double>& values, const char* field, double most) {
    for (const double value : values)
      require(value >= 1 && value <= most && value == std::floor(value), field,
              "positive whole numbers", value);
  };
  require(c.judged >= 64, "judged", "64 or more", c.judged);
  require(c.sweep_judged >= 64, "sweep_judged", "64 or more", c.sweep_judged);
  require(c.steps > 0 && c.steps <= 10'000, "steps", "1 to 10000", c.steps);
  require(c.loss_images > 0, "loss_images", "1 or more", c.loss_images);
  require(c.sweep_evaluations >= 0, "sweep_evaluations", "0 or more", c.sweep_evaluations);
  require(c.latency_runs > 0 && c.latency_runs <= 1000, "latency_runs", "1 to 1000",
          c.latency_runs);
  require(c.nearest >= 0 && c.nearest <= c.judged, "nearest", "0 to the samples judged", c.nearest);
  require(std::isfinite(c.cfg_scale), "cfg_scale", "a number", c.cfg_scale);
  require(c.classifier_epochs > 0, "classifier_epochs", "1 or more", c.classifier_epochs);
  whole(c.sweep_steps, "sweep_steps", 10'000);
  whole(c.batches, "batches", 65'536);
  solver_named(c.solver);
  for (const std::string& solver : c.sweep_solvers) solver_named(solver);
}

SampleSettings judged_settings(const EvaluationConfig& c) {
  return {.steps = c.steps, .solver = solver_named(c.solver), .cfg_scale = 1};
}

Comparison comparison_preset(const std::string& name, const std::vector<std::string>& backbones) {
  const auto found = presets().find(name);
  FM_CHECK(found != presets().end(), "[compare] preset must be paper, quick or tiny, got ", name);
  FM_CHECK(!backbones.empty(), "[compare] there must be a backbone");
  Comparison c{.preset = name,
               .contenders = {},
               .seeds = found->second.seeds,
               .viewer = true,
               .class_share = found->second.class_share,
               .evaluation = found->second.evaluation};
  std::int64_t fewest = 0;
  for (const std::string& backbone : backbones) {
    const auto same = [&](const Contender& other) { return other.name == backbone; };
    FM_CHECK(std::none_of(c.contenders.begin(), c.contenders.end(), same),
             "[compare] each backbone is compared once, got ", backbone, " twice");
    Contender one{backbone, label_of(backbone),
                  preset(name, named(backbone) ? backbone : std::string("hybrid"))};
    if (!named(backbone)) one.config.model.blocks = blocks_of(backbone);
    const std::int64_t limit = one.config.train.max_steps;
    if (limit > 0) fewest = fewest > 0 ? std::min(fewest, limit) : limit;
    c.contenders.push_back(one);
  }
  for (Contender& one : c.contenders) one.config.train.max_steps = fewest;
  return c;
}

std::string label_of(const std::string& backbone) {
  if (backbone == "mamba") return "Pure Mamba";
  if (backbone == "transformer") return "Pure Transformer";
  if (backbone == "hybrid") return "Hybrid";
  return backbone;
}

std::string file_name_of(const std::string& backbone) {
  std::string name = backbone;
  std::replace(name.begin(), name.end(), '*', 'x');
  std::replace(name.begin(), name.end(), '+', '-');
  return name;
}

std::vector<PlannedRun> planned_runs(const Comparison& c, int classes, std::int64_t steps_per_epoch,
                                     const std::string& only) {
  std::vector<PlannedRun> runs;
  std::string there;
  const auto add = [&](const Contender& contender, const std::string& variant, RunConfig config) {
    const std::string name = contender.name + ":" + variant;
    there += (there.empty() ? "" : ", ") + name;
    if (!only.empty() && only != name) return;
    pace(config.train, steps_per_epoch);
    const bool conditional = variant == "classes";
    runs.push_back({&contender, std::move(config),
                    file_name_of(contender.name) + (conditional ? "-" : "-s") + variant,
                    conditional});
  };
  for (int seed = 0; seed < c.seeds; ++seed) {
    for (const Contender& contender : c.contenders) {
      RunConfig config = contender.config;
      config.train.seed = static_cast<std::uint64_t>(seed);
      add(contender, concat(seed), config);
    }
  }
  for (const Contender& contender : c.contenders) {
    if (!c.viewer) break;
    RunConfig config = contender.config;
    const double steps =
        c.class_share * static_cast<double>(steps_of(config.train, steps_per_epoch));
    config.train.max_steps = std::max<std::int64_t>(std::llround(steps), 1);
    config.model.classes = classes;
    add(contender, "classes", config);
  }
  FM_CHECK(!runs.empty(), "[compare] --only must be one of ", there, ", got ", only);
  return runs;
}

std::string check_parameters(const Comparison& c, bool allowed) {
  std::int64_t least = 0, most = 0;
  std::string counts;
  for (const Contender& contender : c.contenders) {
    const std::int64_t count = FlowModel(contender.config.model).params().count();
    counts += concat(counts.empty() ? "" : ", ", contender.name, " ", count);
    least = least ? std::min(least, count) : count;
    most = std::max(most, count);
  }
  const double ratio = static_cast<double>(most) / static_cast<double>(least);
  FM_CHECK(allowed || ratio <= kMostParameters,
           "[compare] parameters may differ by 10 % at most, got ", counts,
           "; change --mlp-hidden, --d-state or the blocks, or allow it with --allow-unequal");
  char text[64];
  std::snprintf(text, sizeof text, " (within %.1f %%)", 100 * (ratio - 1));
  return "parameters: " + counts + text;
}

}  // namespace fm
