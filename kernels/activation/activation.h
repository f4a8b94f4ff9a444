// SiLU, elementwise: y = x sigmoid(x). Arithmetic in acc_t<T>.
//
// Source: Elfwing et al. 2018. T is double or float on the CPU, float, f16 or bf16 on CUDA, where
// arrays begin at multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class T>
struct SiluForward {
  std::int64_t count;  // positive
  const T* x;
  T* y;  // may be x
};

template <class T>
struct SiluBackward {
  std::int64_t count;
  const T* x;
  const T* dy;
  T* dx;  // overwritten; may be dy
};

// Throws where a count is outside the contract.
inline void check_silu_count(std::int64_t count) {
  FM_CHECK(count > 0, "[silu] count must be positive, got ", count);
}

template <class T>
void silu_forward(CpuQueue&, const SiluForward<T>&);
template <class T>
void silu_forward(CudaQueue&, const SiluForward<T>&);
template <class T>
void silu_backward(CpuQueue&, const SiluBackward<T>&);
template <class T>
void silu_backward(CudaQueue&, const SiluBackward<T>&);

}  // namespace fm
