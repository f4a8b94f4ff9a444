// One timed call of an op: how its arrays are made, at a small shape that is checked against the
// reference and at the one that is timed, and what it must do at the least.
//
// An op's calls are listed by one function in <op>_bench.cpp; kernel_benches() calls them all.
#pragma once

#include <string>
#include <vector>

#include "apps/bench/bench_arrays.h"
#include "kernels/base/cases.h"

namespace fm {

// For results that are float whatever the compute type.
constexpr Tolerance in_float(const Tolerance& tolerance) {
  return {tolerance.f32, tolerance.f32, tolerance.f32};
}

struct KernelBench {
  std::string op, call, shape;  // "attention", "backward", "b256 h8 L196 d16"
  Work work;                    // at the timed shape
  Tolerance tolerance;          // at the checked one, against double
  std::function<Call(BenchArrays&)> checked, timed;
};

class BenchList {
 public:
  // batch: images of the timed shapes. more_shapes: beside the paper's, too, those of other widths
  // and lengths.
  BenchList(DType compute, int batch, bool more_shapes)
      : compute(compute), batch(batch), more_shapes(more_shapes) {}

  // make(arrays, shape) makes the arrays and returns the call.
  template <class Shape>
  void add(const std::string& op, const std::string& call, const std::string& shape,
           const Tolerance& tolerance, const Work& work, Call (*make)(BenchArrays&, const Shape&),
           const Shape& checked, const Shape& timed) {
    benches_.push_back({op, call, shape, work, tolerance,
                        [make, checked](BenchArrays& arrays) { return make(arrays, checked); },
                        [make, timed](BenchArrays& arrays) { return make(arrays, timed); }});
  }
  const std::vector<KernelBench>& benches() const { return benches_; }

  // A number that is proportional to the paper's batch of 256, for this batch.
  template <class Count>
  Count scaled(Count of_paper) const {
    return of_paper / 256 * static_cast<Count>(batch);
  }

  DType compute;
  int batch;
  bool more_shapes;

 private:
  std::vector<KernelBench> benches_;
};

// One a folder of kernels/.
void bench_activation(BenchList&);
void bench_adamw(BenchList&);
void bench_attention(BenchList&);
void bench_cast(BenchList&);
void bench_causal_conv1d(BenchList&);
void bench_cross_entropy(BenchList&);
void bench_embedding(BenchList&);
void bench_flow(BenchList&);
void bench_image_batch(BenchList&);
void bench_linear_combination(BenchList&);
void bench_linear_rmsnorm(BenchList&);
void bench_conv_linear_rmsnorm(BenchList&);
void bench_matmul(BenchList&);
void bench_patchify(BenchList&);
void bench_random(BenchList&);
void bench_residual_norm(BenchList&);
void bench_rmsnorm(BenchList&);
void bench_rmsnorm_linear(BenchList&);
void bench_selective_scan(BenchList&);
void bench_swiglu(BenchList&);
void bench_swiglu_linear(BenchList&);
void bench_swiglu_mlp(BenchList&);

// All of them, hottest first. `op`: those of one op (empty: all); throws Fault::usage for another
// name.
std::vector<KernelBench> kernel_benches(BenchList list, const std::string& op);

// What is wrong with a call's results, as a sentence; empty: nothing. At the checked shape they
// must agree with the CPU's in double, at the timed one be finite and the same bits twice.
std::string wrong_values(const KernelBench& bench, const Queue& queue, DType compute);
std::string wrong_when_timed(BenchArrays& arrays, const Call& call);

}  // namespace fm
