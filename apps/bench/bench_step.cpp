#include <cmath>
#include <cstring>

#include "apps/bench/bench_run.h"
#include "apps/data_source.h"
#include "apps/divergence.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/train_config.h"
#include "models/trainer.h"

namespace fm {
namespace {

constexpr int kCheckedSteps = 4;
constexpr int kWarmUps = 5;      // the graph is captured in the second
constexpr int kMostSteps = 100;  // whose times a trainer keeps
constexpr int kCudaSteps = 100, kCpuSteps = 20;

const std::vector<Column> kTable = {
    {"backbone", "backbone", -12},
    {"batch", "batch", 5},
    {"median ms", "median_ms", 10, 1, 3},
    {"p10", "p10_ms", 9, 1, 3},
    {"p90", "p90_ms", 9, 1, 3},
    {"images/s", "images_per_s", 9},
    {"peak GiB", "peak_bytes", 8, 1.0 / (1 << 30), 2},
    {"loss", "loss", 8, 1, 4},
};

std::vector<float> losses(Trainer& trainer, int steps) {
  for (int i = 0; i < steps; ++i) trainer.step();
  std::vector<float> all;
  for (const StepRecord& record : trainer.records(0, trainer.steps())) all.push_back(record.loss);
  return all;
}

// Two fresh trainers, one with the graph, must see the same finite losses.
std::string wrong_steps(const BenchOptions& options, const RunConfig& config, DType compute,
                        const DataSet& data) {
  const Queue queue = make_queue(options.device, options.threads);  // one choice of algorithms
  std::vector<float> first;
  for (const bool graph : {false, true}) {
    Trainer trainer(queue, config.model, trainer_settings(config.train, compute, graph), data);
    const std::vector<float> now = losses(trainer, kCheckedSteps);
    for (const float loss : now)
      if (!std::isfinite(loss)) return concat("a loss of the first steps is ", loss);
    if (!graph) first = now;
    else if (std::memcmp(first.data(), now.data(), now.size() * sizeof(float)) != 0)
      return "the graph's losses differ from those of single launches";
  }
  return "";
}

Json step_row(const BenchOptions& options, const std::string& name, const RunConfig& config,
              DType compute, const DataSet& data, int steps) {
  Json row;
  row["name"] = concat("step ", name, " b", config.train.batch, " ", name_of(compute));
  row["backbone"] = backbone_name(config.model.blocks);
  row["batch"] = config.train.batch;
  std::string wrong = wrong_steps(options, config, compute, data);
  if (wrong.empty()) {
    // A queue of its own, whose ledger knows of this trainer alone.
    Queue queue = make_queue(options.device, options.threads);
    Trainer trainer(queue, config.model, trainer_settings(config.train, compute, true), data);
    losses(trainer, kWarmUps);
    trainer.pause();
    for (int i = 0; i <= steps; ++i) {  // the first one after a pause has no time
      throw_if_interrupted();
      trainer.step();
    }
    const std::vector<double> all = trainer.step_times_ms();  // those before the pause, too
    const Times times = times_of({all.end() - steps, all.end()});
    const auto records = trainer.records(0, trainer.steps());
    for (const StepRecord& record : records)
      if (wrong.empty()) wrong = divergence(record);
    put_times(row, times);
    row["images_per_s"] = 1e3 * config.train.batch / times.median_ms;
    row["peak_bytes"] = std::visit([](auto& q) { return q.memory().peak(); }, queue);
    row["driver_bytes"] = std::visit([](auto& q) { return system_memory_in_use(q); }, queue);
    row["params"] = trainer.model().params().count();
    row["loss"] = records.back().loss;
    row["steps"] = trainer.steps();
  }
  if (!wrong.empty()) {
    row.erase("median_ms");
    row["failure"] = wrong;
  }
  return row;
}

}  // namespace

int bench_step(const BenchOptions& options, const StepOptions& step) {
  FM_CHECK(options.runs >= 0 && options.runs <= kMostSteps,
           "[bench] runs must be 0 (the device's default) to ", kMostSteps, ", got ", options.runs);
  Queue queue = make_queue(options.device, options.threads);
  const bool cuda = !std::holds_alternative<CpuQueue>(queue);
  const DType compute = make_dtype(options.dtype, queue);
  CpuQueue host(options.threads);
  Report report(options.report, kTable, machine_json(queue, compute));
  std::vector<RunConfig> configs;
  const std::string preset_name = step.preset != "auto" ? step.preset : cuda ? "paper" : "tiny";
  for (const std::string& backbone : step.backbones) {
    RunConfig config = preset(preset_name, backbone);
    if (step.batch) config.train.batch = step.batch;
    validate(config.train);
    configs.push_back(config);
  }
  const DataChoice choice = load_data(step.data, Split::train, host);
  if (!choice.note.empty()) std::fprintf(stderr, "%s\n", choice.note.c_str());
  const int steps = options.runs ? options.runs : cuda ? kCudaSteps : kCpuSteps;
  for (std::size_t i = 0; i < configs.size(); ++i) {
    RunConfig& config = configs[i];
    config.model.image = choice.data.size;
    config.model.channels = choice.data.channels;
    Json row = step_row(options, concat(step.backbones[i], " ", preset_name), config, compute,
                        choice.data, steps);
    row["preset"] = preset_name;
    row["data"] = choice.data.name;
    report.row(row);
  }
  return report.finish();
}

}  // namespace fm
