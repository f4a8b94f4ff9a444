#include <cstdio>
#include <iostream>

#include "apps/bench/bench_run.h"
#include "apps/bench/ceilings.h"
#include "apps/environment.h"
#include "apps/program.h"

namespace fm {
namespace {

constexpr int kCudaBatch = 256, kCpuBatch = 8;
constexpr int kCudaRuns = 50, kCpuRuns = 15, kMostRuns = 10000;
constexpr double kCudaBudgetMs = 200, kCpuBudgetMs = 150;  // of a call

const std::vector<Column> kTable = {
    {"op", "op", -18},
    {"call", "call", -15},
    {"shape", "shape", -24},
    {"median us", "median_ms", 10, 1e3, 1},
    {"p10", "p10_ms", 9, 1e3, 1},
    {"p90", "p90_ms", 9, 1e3, 1},
    {"floor us", "floor_ms", 9, 1e3, 1},
    {"share", "share", 5, 1, 2},
    {"limit", "limit", -10},
};
const std::vector<Column> kMarkdown = {
    {"op", "op", -1},
    {"call", "call", -1},
    {"shape", "shape", -1},
    {"floor, us", "floor_ms", 1, 1e3, 1},
    {"time, us", "median_ms", 1, 1e3, 1},
    {"share of the floor", "share", 1, 1, 2},
    {"limit", "limit", -1},
};

std::string tera(double rate) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", rate * 1e-12);
  return text;
}

void print_ceilings(const Ceilings& c, const Json& machine) {
  std::cout << machine["device"].get<std::string>() << ", " << machine["dtype"].get<std::string>()
            << ", commit " << machine["commit"].get<std::string>() << "\nceilings, measured: copy "
            << tera(c.copy_rate()) << " TB/s, multiply-add " << tera(c.flops)
            << " Tflop/s, exponential " << tera(c.specials) << " T/s, matrix product "
            << tera(c.matrix_flops) << " Tflop/s";
  if (machine["clock_mhz"].is_number())
    std::cout << ", at " << static_cast<int>(machine["clock_mhz"].get<double>()) << " MHz";
  std::cout << "\n\n";
}

}  // namespace

Json kernel_row(const KernelBench& bench, const Queue& queue, DType compute,
                const Ceilings& ceilings, CallTimer& timer) {
  Json row;
  row["name"] =
      concat("kernels ", bench.op, " ", bench.call, " ", bench.shape, " ", name_of(compute));
  row["op"] = bench.op;
  row["call"] = bench.call;
  row["shape"] = bench.shape;
  std::string wrong = wrong_values(bench, queue, compute);
  if (wrong.empty()) {
    BenchArrays arrays(queue, compute, compute);
    const Call call = bench.timed(arrays);
    wrong = wrong_when_timed(arrays, call);
    if (wrong.empty()) put_times(row, timer(call, arrays.buffers()));
  }
  if (!wrong.empty()) {
    row["failure"] = wrong;
    return row;
  }
  const Floor floor = floor_of(bench.work, ceilings);
  row["bytes"] = bench.work.bytes;
  row["flops"] = bench.work.flops;
  row["specials"] = bench.work.specials;
  row["matrix_flops"] = bench.work.matrix_flops;
  row["floor_ms"] = floor.seconds * 1e3;
  row["share"] = floor.seconds * 1e3 / row["median_ms"].get<double>();
  row["limit"] = floor.limit;
  return row;
}

Json machine_json(Queue& queue, DType compute) {
  Json machine = environment_json(queue);
  machine["dtype"] = name_of(compute);
  const double mhz = measure_clock_mhz(queue);
  machine["clock_mhz"] = mhz > 0 ? Json(mhz) : Json();
  return machine;
}

int bench_kernels(const BenchOptions& options, const KernelOptions& kernels) {
  Queue queue = make_queue(options.device, options.threads);
  const DType compute = make_dtype(options.dtype, queue);
  FM_CHECK(compute != DType::f64, "[bench] dtype must be fp16, bf16 or fp32, got fp64");
  FM_CHECK(options.runs >= 0 && options.runs <= kMostRuns,
           "[bench] runs must be 0 (the device's default) to ", kMostRuns, ", got ", options.runs);
  FM_CHECK(kernels.batch >= 0 && kernels.batch <= 4096,
           "[bench] batch must be 0 (the device's default) to 4096, got ", kernels.batch);
  const bool cuda = !std::holds_alternative<CpuQueue>(queue);
  const int batch = kernels.batch ? kernels.batch : cuda ? kCudaBatch : kCpuBatch;
  const std::vector<KernelBench> benches =
      kernel_benches(BenchList(compute, batch, cuda), kernels.op);
  const Json machine = machine_json(queue, compute);
  Report report(options.report, options.report.markdown ? kMarkdown : kTable, machine);
  const Ceilings ceilings = measure_ceilings(queue, compute);
  report.every_row("ceilings", to_json(ceilings));
  print_ceilings(ceilings, machine);
  CallTimer timer(queue,
                  options.runs ? options.runs
                  : cuda       ? kCudaRuns
                               : kCpuRuns,
                  cuda ? kCudaBudgetMs : kCpuBudgetMs);
  for (const KernelBench& bench : benches) {
    throw_if_interrupted();
    report.row(kernel_row(bench, queue, compute, ceilings, timer));
  }
  return report.finish();
}

}  // namespace fm
