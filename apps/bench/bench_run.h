// The three things fmbench times, each checked before it is timed. They return the exit code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/bench/kernel_bench.h"
#include "apps/bench/report.h"

namespace fm {

struct BenchOptions {
  std::string device = "auto", dtype = "auto";
  int threads = 0;
  int runs = 0;  // 0: as many as the device is usually given
  ReportOptions report;
};

struct KernelOptions {
  std::string op;  // empty: all
  int batch = 0;   // images; 0: the paper's 256 on CUDA, 8 on the CPU
};

struct ModelOptions {
  std::vector<std::string> backbones = {"transformer", "mamba", "hybrid"};
  std::string preset = "auto";  // paper on CUDA, tiny on the CPU
};

struct StepOptions : ModelOptions {
  std::string data = "auto";
  int batch = 0;  // 0: the preset's
};

struct SampleBenchOptions : ModelOptions {
  std::vector<int> batches = {1, 64};
  int steps = 10;
  std::string solver = "euler";
};

int bench_kernels(const BenchOptions& options, const KernelOptions& kernels);
int bench_step(const BenchOptions& options, const StepOptions& step);
int bench_sample(const BenchOptions& options, const SampleBenchOptions& sample);

// Where a run's rows come from: what env.json says of it, the dtype, the clock (null: not known).
Json machine_json(Queue& queue, DType compute);

// Checks a call and, where it is right, times it: a row of the report.
struct Ceilings;
Json kernel_row(const KernelBench& bench, const Queue& queue, DType compute,
                const Ceilings& ceilings, CallTimer& timer);

}  // namespace fm
