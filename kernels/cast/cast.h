// Arrays from one element type to another, and arrays of one value. Rounded to nearest even.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class From, class To>
struct Cast {
  std::int64_t count;
  const From* from;
  To* to;
};

template <class T>
struct Fill {
  std::int64_t count;
  T value;
  T* to;
};

// Any pair of float and double on the CPU; from or to float with float, f16, bf16 on CUDA.
template <class From, class To>
void cast(CpuQueue&, const Cast<From, To>&);
template <class From, class To>
void cast(CudaQueue&, const Cast<From, To>&);
// double, float, int32 on the CPU; float, int32 on CUDA.
template <class T>
void fill(CpuQueue&, const Fill<T>&);
template <class T>
void fill(CudaQueue&, const Fill<T>&);

}  // namespace fm
