// CUDA against the CPU reference, for every dtype. `solve` is a generic functor
//   Results operator()<T>(Queue&, const Problem&)      (T the compute type)
// and a Problem has `Problem rounded<T>() const`: the inputs as T can hold them.
#pragma once

#include <vector>

#include "kernels/base/check.h"
#include "tests/support/effort.h"
#include "tests/support/expect.h"

namespace fm::test {

// One queue for all GPU tests of a process.
inline CudaQueue& cuda_queue() {
  static CudaQueue queue(0);
  return queue;
}
inline CpuQueue& cpu_queue() {
  static CpuQueue queue;
  return queue;
}

#if FM_CUDA
template <class T, class Problem, class Solve>
void check_cuda_type(const Problem& problem, const Tolerance& tolerance, Solve& solve,
                     CudaQueue& queue) {
  const Problem rounded = problem.template rounded<T>();
  const Results want = solve.template operator()<double>(cpu_queue(), rounded);
  const Results got = solve.template operator()<T>(queue, rounded);
  const Results again = solve.template operator()<T>(queue, rounded);
  INFO(concat(name_of(dtype_of<T>()), " on ", queue.limits.name));
  expect_close(got, want, tolerance.of(dtype_of<T>()));
  expect_same_bits(got, again);
}

// fp32, fp16 and bf16 on the GPU against double on the CPU, on the same rounded inputs, twice with
// the same bits. bf16 runs the code of fp16: small effort leaves it out.
template <class Problem, class Solve>
void check_cuda(const Problem& problem, const Tolerance& tolerance, Solve&& solve,
                CudaQueue& queue = cuda_queue()) {
  check_cuda_type<float>(problem, tolerance, solve, queue);
  check_cuda_type<f16>(problem, tolerance, solve, queue);
  if (!small_effort()) check_cuda_type<bf16>(problem, tolerance, solve, queue);
}

// The precisions that a test of whole models runs in.
inline std::vector<DType> cuda_types() {
  if (small_effort()) return {DType::f16};
  return {DType::f32, DType::f16, DType::bf16};
}
#endif

}  // namespace fm::test
