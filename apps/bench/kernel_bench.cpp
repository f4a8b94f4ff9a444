#include "apps/bench/kernel_bench.h"

#include <algorithm>
#include <cmath>

namespace fm {
namespace {

struct Entry {
  const char* op;
  void (*list)(BenchList&);
};
constexpr Entry kEntries[] = {
    {"selective_scan", bench_selective_scan},
    {"attention", bench_attention},
    {"matmul", bench_matmul},
    {"causal_conv1d", bench_causal_conv1d},
    {"rmsnorm", bench_rmsnorm},
    {"linear_rmsnorm", bench_linear_rmsnorm},
    {"conv_linear_rmsnorm", bench_conv_linear_rmsnorm},
    {"rmsnorm_linear", bench_rmsnorm_linear},
    {"residual_norm", bench_residual_norm},
    {"swiglu", bench_swiglu},
    {"swiglu_linear", bench_swiglu_linear},
    {"swiglu_mlp", bench_swiglu_mlp},
    {"activation", bench_activation},
    {"adamw", bench_adamw},
    {"cross_entropy", bench_cross_entropy},
    {"embedding", bench_embedding},
    {"patchify", bench_patchify},
    {"flow", bench_flow},
    {"random", bench_random},
    {"image_batch", bench_image_batch},
    {"linear_combination", bench_linear_combination},
    {"cast", bench_cast},
};

// ||got - want|| / ||want||; infinity for a value that is not finite.
double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

}  // namespace

std::vector<KernelBench> kernel_benches(BenchList list, const std::string& op) {
  std::string known;
  bool found = op.empty();
  for (const Entry& entry : kEntries) {
    known += concat(known.empty() ? "" : ", ", entry.op);
    if (!op.empty() && op != entry.op) continue;
    entry.list(list);
    found = true;
  }
  FM_CHECK(found, "[bench] op must be one of ", known, ", got ", op);
  return list.benches();
}

std::string wrong_values(const KernelBench& bench, const Queue& queue, DType compute) {
  BenchArrays tested(queue, compute, compute), reference(CpuQueue(), DType::f64, compute);
  for (BenchArrays* arrays : {&reference, &tested}) {
    const Call call = bench.checked(*arrays);
    arrays->begin();
    call();
  }
  const auto got = tested.read(), want = reference.read();
  const double allowed = bench.tolerance.of(compute);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = relative_error(got[i].values, want[i].values);
    if (!(error <= allowed))
      return concat(want[i].name, " is off by ", error, ", allowed are ", allowed);
  }
  return want.empty() ? "nothing was compared" : "";
}

std::string wrong_when_timed(BenchArrays& arrays, const Call& call) {
  CpuQueue host;
  BenchArrays::Fingerprint first;
  for (int run = 0; run < 2; ++run) {
    arrays.begin();
    call();
    const BenchArrays::Fingerprint now = arrays.fingerprint(host);
    if (!now.not_finite.empty()) return concat(now.not_finite, " has a value that is not finite");
    if (run == 0) first = now;
    else if (now.bits != first.bits) return "two runs gave different bits";
  }
  return "";
}

}  // namespace fm
