#include "apps/compare/token_sweep.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "apps/compare/compare_config.h"
#include "apps/compare/figures.h"
#include "apps/compare/measure.h"
#include "apps/compare/plots.h"
#include "apps/compare/report_markdown.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/statistics.h"
#include "engine/io/atomic_file.h"
#include "kernels/base/rng.h"
#include "models/flops.h"
#include "models/trainer.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr int kWarmUps = 3;  // the graph is captured in the second
constexpr int kCudaSteps = 20, kCpuSteps = 3;
constexpr int kMostSteps = 100;  // whose times a trainer keeps
constexpr int kUsualImage = 28, kUsualPatch = 2;
constexpr double kRatios[] = {1, 2, 3};

// Time does not depend on what the images show.
DataSet synthetic(int image, std::int64_t count) {
  DataSet data;
  data.name = "synthetic";
  data.count = count;
  data.size = image;
  data.pixels.resize(static_cast<std::size_t>(count * image * image));
  const RandomKey key{0, stream::digits, 0, 0};
  for (std::size_t i = 0; i < data.pixels.size(); ++i)
    data.pixels[i] = static_cast<std::uint8_t>(random4(key, static_cast<std::uint32_t>(i)).x0);
  data.labels.assign(static_cast<std::size_t>(count), 0);
  return data;
}

class Sweep {
 public:
  explicit Sweep(const SweepRequest& request)
      : r_(request),
        queue_(make_queue(request.device, request.threads)),
        compute_(make_dtype(request.dtype, queue_)),
        cuda_(!std::holds_alternative<CpuQueue>(queue_)),
        steps_(request.steps ? request.steps
               : cuda_       ? kCudaSteps
                             : kCpuSteps) {
    FM_CHECK(request.steps >= 0 && request.steps < kMostSteps, "[sweep] steps must be 0 to ",
             kMostSteps - 1, ", got ", request.steps);
    FM_CHECK(request.sample_steps > 0, "[sweep] sample_steps must be positive, got ",
             request.sample_steps);
    FM_CHECK(request.tokens_per_step >= 0, "[sweep] tokens_per_step must be 0 or more, got ",
             request.tokens_per_step);
    FM_CHECK(!request.tokens.empty(), "[sweep] there must be a number of tokens");
    r_.preset = request.preset != "auto" ? request.preset : cuda_ ? "paper" : "tiny";
    std::sort(r_.tokens.begin(), r_.tokens.end());
    for (const int tokens : r_.tokens) shape_for(tokens);
    comparison_ = comparison_preset(r_.preset, request.backbones);
    const RunConfig& first = comparison_.contenders.front().config;
    if (r_.tokens_per_step == 0) r_.tokens_per_step = first.train.batch * first.model.tokens();
  }

  Json measure() {
    Json sweep;
    sweep["device"] = device_name(queue_);
    sweep["preset"] = r_.preset;
    sweep["dtype"] = name_of(compute_);
    sweep["version"] = version_text();
    sweep["tokens_per_step"] = r_.tokens_per_step;
    sweep["sample_steps"] = r_.sample_steps;
    sweep["rows"] = Json::array();
    const std::size_t total = comparison_.contenders.size() * r_.tokens.size();
    Progress progress("sweep", total);
    for (const Contender& contender : comparison_.contenders) {
      for (const int tokens : r_.tokens) {
        throw_if_interrupted();
        sweep["rows"].push_back(row(contender, tokens));
        const Json& row = sweep["rows"].back();
        const std::size_t done = sweep["rows"].size();
        progress.update(done, concat(contender.name, " ", tokens));
        progress.line(concat(
            done, "/", total, "  ", contender.name, ", ", tokens, " tokens: ",
            row.at("failed").is_null()
                ? concat(figure(row.at("step_ms"), 2), " ms a step of ", row.at("batch").get<int>(),
                         ", one image ", figure(row.at("latency_ms"), 2), " ms")
                : row.at("failed").get<std::string>(),
            "  left ", progress.time_left(done)));
      }
    }
    find_crossovers(sweep);
    return sweep;
  }

 private:
  Json row(const Contender& contender, int tokens) {
    const TokenShape shape = shape_for(tokens);
    RunConfig config = contender.config;
    config.model.image = shape.image;
    config.model.patch = shape.patch;
    config.train.batch = std::max(r_.tokens_per_step / tokens, 1);
    const Json none;
    Json row;
    row["backbone"] = contender.name;
    row["tokens"] = tokens;
    row["image"] = shape.image;
    row["patch"] = shape.patch;
    row["batch"] = config.train.batch;
    for (const char* field : {"step_ms", "step_p90_ms", "us_per_image", "peak_memory_bytes",
                              "bytes_per_image", "latency_ms", "failed"})
      row[field] = none;
    row["step_flops"] = step_flops(config.model, config.train.batch);
    try {
      time_training(config, row);
      time_sampling(config, row);
    } catch (const Error& error) {
      if (error.fault() != Fault::device) throw;
      row["failed"] = "out of memory";
    }
    return row;
  }

  void time_training(const RunConfig& config, Json& row) {
    // A queue of its own, whose ledger knows of this trainer alone.
    Queue queue = make_queue(r_.device, r_.threads);
    const DataSet data = synthetic(config.model.image, config.train.batch);
    Trainer trainer(queue, config.model, trainer_settings(config.train, compute_, true), data);
    const auto memory = [&] {
      return std::visit([](auto& q) { return q.memory().peak(); }, queue);
    };
    for (int i = 0; i < kWarmUps; ++i) trainer.step();
    trainer.pause();
    for (int i = 0; i <= steps_; ++i) {  // the first one after a pause has no time
      throw_if_interrupted();
      trainer.step();
    }
    const std::vector<double> all = trainer.step_times_ms();
    const std::vector<double> times(all.end() - steps_, all.end());
    const double ms = quantile(times, 0.5);
    row["step_ms"] = ms;
    row["step_p90_ms"] = quantile(times, 0.9);
    row["us_per_image"] = 1e3 * ms / config.train.batch;
    row["peak_memory_bytes"] = memory();
    row["bytes_per_image"] = static_cast<double>(memory()) / config.train.batch;
  }

  void time_sampling(const RunConfig& config, Json& row) {
    Queue queue = make_queue(r_.device, r_.threads);
    FlowModel model(config.model);
    Context context(queue, compute_);
    model.materialise(context, ParamStore::Use::inference);
    model.params().initialise(0);
    model.params().refresh_compute();
    Sampler sampler(queue, compute_, model);
    const SampleSettings settings{
        .steps = r_.sample_steps, .solver = Solver::euler, .cfg_scale = 1};
    row["latency_ms"] = quantile(sampling_times(sampler, settings, 1, steps_), 0.5);
  }

  // Each ordered pair of backbones, for what training and sampling cost.
  void find_crossovers(Json& sweep) const {
    sweep["crossovers"] = Json::array();
    sweep["sentences"] = Json::array();
    const auto has = [&](const char* name) {
      return std::any_of(comparison_.contenders.begin(), comparison_.contenders.end(),
                         [&](const Contender& c) { return c.name == name; });
    };
    for (const char* slower : {"transformer", "hybrid"}) {
      if (!has("mamba") || !has(slower)) continue;
      for (const auto& [field, what] :
           {std::pair{"step_ms", "a training step"}, {"latency_ms", "one image"}}) {
        std::string sentence;
        for (const double ratio : kRatios) {
          const Json tokens = crossover(sweep["rows"], "mamba", slower, field, ratio);
          sweep["crossovers"].push_back({{"faster", "mamba"},
                                         {"slower", slower},
                                         {"of", field},
                                         {"ratio", ratio},
                                         {"tokens", tokens}});
          const std::string times = ratio == 1 ? "as fast" : concat(ratio, " times as fast");
          sentence +=
              (sentence.empty() ? concat("For ", what, ", Mamba is ") : ", ") + times +
              (tokens.is_null() ? " nowhere"
                                : concat(" from ", std::lround(number(tokens)), " tokens on"));
        }
        sweep["sentences"].push_back(sentence + concat(", against the ", slower, " (",
                                                       ends(sweep["rows"], slower, field), ")."));
      }
    }
  }

  // "0.4 times at 49 tokens, 1.9 at 3136": the slower one's time over Mamba's.
  static std::string ends(const Json& rows, const std::string& slower, const char* field);

  SweepRequest r_;
  Queue queue_;
  DType compute_;
  bool cuda_;
  int steps_;
  Comparison comparison_;
};

// Time of `slower` over that of `faster` at each count that both have, in rising order.
std::vector<std::pair<double, double>> ratios(const Json& rows, const std::string& faster,
                                              const std::string& slower, const std::string& field) {
  std::vector<std::pair<double, double>> found;
  for (const Json& a : rows)
    for (const Json& b : rows)
      if (a.at("backbone") == faster && b.at("backbone") == slower &&
          a.at("tokens") == b.at("tokens") && a.at(field).is_number() && b.at(field).is_number())
        found.emplace_back(number(a.at("tokens")), number(b.at(field)) / number(a.at(field)));
  std::sort(found.begin(), found.end());
  return found;
}

std::string Sweep::ends(const Json& rows, const std::string& slower, const char* field) {
  const auto all = ratios(rows, "mamba", slower, field);
  if (all.empty()) return "not measured";
  const auto text = [](const std::pair<double, double>& at) {
    return concat(figure(at.second, 2), " times its time at ", std::lround(at.first), " tokens");
  };
  return all.size() == 1 ? text(all.front()) : text(all.front()) + ", " + text(all.back());
}

}  // namespace

TokenShape shape_for(int tokens) {
  const int side = static_cast<int>(std::lround(std::sqrt(tokens)));
  FM_CHECK(tokens > 0 && side * side == tokens,
           "[sweep] tokens must be squares, as 49, 100, 196, got ", tokens);
  if (kUsualImage % side == 0) return {kUsualImage, kUsualImage / side};
  return {side * kUsualPatch, kUsualPatch};
}

Json crossover(const Json& rows, const std::string& faster, const std::string& slower,
               const std::string& field, double ratio) {
  const auto all = ratios(rows, faster, slower, field);
  if (all.empty() || all.back().second < ratio) return nullptr;
  std::size_t i = all.size() - 1;  // the least count from which on the ratio is reached
  while (i > 0 && all[i - 1].second >= ratio) --i;
  const auto [tokens, now] = all[i];
  if (i == 0) return tokens;  // everywhere
  const auto [before, then] = all[i - 1];
  const double part = std::log(ratio / then) / std::log(now / then);
  return before * std::pow(tokens / before, part);
}

int run_sweep(const SweepRequest& request) {
  const Json sweep = Sweep(request).measure();
  fs::create_directories(request.out / "plots");
  write_file(request.out / "sweep.json", sweep.dump(1) + "\n");
  write_file(request.out / "plots/sweep.svg", sweep_plot(sweep).at("svg").get<std::string>());
  write_file(
      request.out / "sweep.md",
      concat("# Cost against the number of tokens\n\nModels of preset `",
             sweep.at("preset").get<std::string>(), "`, ", sweep.at("dtype").get<std::string>(),
             ", on ", sweep.at("device").get<std::string>(), "; a step is of ",
             sweep.at("tokens_per_step").get<int>(),
             " tokens.\n\n![Cost against tokens](plots/sweep.svg)\n\n", sweep_markdown(sweep)));
  std::cout << sweep_markdown(sweep) << (request.out / "sweep.md").string() << "\n";
  return 0;
}

}  // namespace fm
