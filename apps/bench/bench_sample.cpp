#include <cmath>
#include <cstring>

#include "apps/bench/bench_run.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/train_config.h"
#include "engine/stopwatch.h"
#include "kernels/base/rng.h"
#include "models/solver.h"

namespace fm {
namespace {

constexpr int kWarmUps = 1;  // batches; the checks have run two
constexpr int kCudaRuns = 20, kCpuRuns = 3, kMostRuns = 1000;
constexpr float kPerturbation = 0.02f;

const std::vector<Column> kTable = {
    {"backbone", "backbone", -12},
    {"batch", "batch", 5},
    {"solver", "solver", -8},
    {"steps", "steps", 5},
    {"median ms", "median_ms", 10, 1, 3},
    {"p10", "p10_ms", 9, 1, 3},
    {"p90", "p90_ms", 9, 1, 3},
    {"images/s", "images_per_s", 9},
};

// Weights as at the start of training, moved a little: some start at zero, and with them all that
// they multiply.
void initialise(ParamStore& params) {
  params.initialise(0);
  std::vector<std::byte> bytes = params.read(params.master());
  std::vector<float> noise(bytes.size() / sizeof(float));
  fill_normals({1, stream::initialization, 0, 0}, 0, static_cast<std::int64_t>(noise.size()),
               noise.data());
  for (std::size_t i = 0; i < noise.size(); ++i) {
    float weight;
    std::memcpy(&weight, bytes.data() + i * sizeof weight, sizeof weight);
    weight += kPerturbation * noise[i];
    std::memcpy(bytes.data() + i * sizeof weight, &weight, sizeof weight);
  }
  params.write(params.master(), bytes);
  params.refresh_compute();
}

// One batch drawn twice must have the same bits, all of them finite.
std::string wrong_samples(const Queue& queue, DType compute, const FlowModel& model,
                          const SampleRequest& request) {
  const std::vector<float> first = sample(queue, compute, model, request);
  const std::vector<float> again = sample(queue, compute, model, request);
  for (const float x : first)
    if (!std::isfinite(x)) return concat("a sampled pixel is ", x);
  if (std::memcmp(first.data(), again.data(), first.size() * sizeof(float)) != 0)
    return "two runs gave different bits";
  return "";
}

// From the first step's start to the last one's end, a batch, as fmsample runs them.
std::vector<double> batch_times(Queue queue, DType compute, const FlowModel& model,
                                SampleRequest request, int runs) {
  Stopwatch watch(queue, static_cast<std::size_t>(runs) + 1);
  request.count = request.batch * std::int64_t{kWarmUps + runs};
  const int last = request.settings.steps;
  request.on_step = [&](std::int64_t first, std::int64_t, int step, const std::vector<float>&) {
    throw_if_interrupted();
    if (first < std::int64_t{kWarmUps} * request.batch) return;
    if (step == 0) watch.restart();
    if (step == 0 || step == last) watch.mark(queue);
  };
  sample(queue, compute, model, request);
  return watch.intervals_ms();
}

}  // namespace

int bench_sample(const BenchOptions& options, const SampleBenchOptions& o) {
  Queue queue = make_queue(options.device, options.threads);
  const bool cuda = !std::holds_alternative<CpuQueue>(queue);
  const DType compute = make_dtype(options.dtype, queue);
  FM_CHECK(compute != DType::f64, "[bench] dtype must be fp16, bf16 or fp32, got fp64");
  FM_CHECK(options.runs >= 0 && options.runs <= kMostRuns,
           "[bench] runs must be 0 (the device's default) to ", kMostRuns, ", got ", options.runs);
  FM_CHECK(o.steps > 0 && o.steps <= 10'000, "[bench] steps must be 1 to 10000, got ", o.steps);
  for (const int batch : o.batches)
    FM_CHECK(batch > 0 && batch <= 65536, "[bench] batch must be 1 to 65536, got ", batch);
  const Solver solver = solver_named(o.solver);
  const std::string preset_name = o.preset != "auto" ? o.preset : cuda ? "paper" : "tiny";
  std::vector<RunConfig> configs;
  for (const std::string& backbone : o.backbones) configs.push_back(preset(preset_name, backbone));
  const int runs = options.runs ? options.runs : cuda ? kCudaRuns : kCpuRuns;
  Report report(options.report, kTable, machine_json(queue, compute));
  for (std::size_t i = 0; i < configs.size(); ++i) {
    FlowModel model(configs[i].model);
    Context context(queue, compute);
    model.materialise(context, ParamStore::Use::inference);
    initialise(model.params());
    for (const int batch : o.batches) {
      SampleRequest request;
      request.count = request.batch = batch;
      request.settings = {o.steps, solver, 1};
      Json row;
      row["name"] = concat("sample ", o.backbones[i], " ", preset_name, " b", batch, " ", o.solver,
                           o.steps, " ", name_of(compute));
      row["backbone"] = o.backbones[i];
      row["preset"] = preset_name;
      row["batch"] = batch;
      row["solver"] = o.solver;
      row["steps"] = o.steps;
      const std::string wrong = wrong_samples(queue, compute, model, request);
      if (wrong.empty()) {
        const Times times = times_of(batch_times(queue, compute, model, request, runs));
        put_times(row, times);
        row["images_per_s"] = 1e3 * batch / times.median_ms;
      } else {
        row["failure"] = wrong;
      }
      report.row(row);
    }
  }
  return report.finish();
}

}  // namespace fm
