// out = sum of factor[i] x[i] over up to five arrays: the update of a Runge-Kutta step, and
// guidance.
//
// R is double or float on the CPU, float on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class R>
struct LinearCombination {
  std::int64_t count;
  int terms;  // 1 to 5
  const R* x[5];
  R factor[5];
  R* out;  // may be any of x
};

template <class R>
void linear_combination(CpuQueue&, const LinearCombination<R>&);
template <class R>
void linear_combination(CudaQueue&, const LinearCombination<R>&);

}  // namespace fm
