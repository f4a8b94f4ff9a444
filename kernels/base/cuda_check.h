// FM_CUDA_CHECK(call): throws Fault::device with the call, its error and the place. Include from
// CUDA code only.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/check.h"

namespace fm {

inline void cuda_check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    fail(Fault::device, "[cuda] ", call, " failed: ", cudaGetErrorName(status), ", ",
         cudaGetErrorString(status));
}

}  // namespace fm

#define FM_CUDA_CHECK(call) ::fm::cuda_check((call), #call)
