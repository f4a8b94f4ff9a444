#include "kernels/base/cuda_check.h"
#include "kernels/base/deferred.cuh"

namespace fm {
namespace {

__global__ void probe_kernel() {}

bool compiled_to_wait() {
  cudaFuncAttributes attributes{};
  FM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, probe_kernel));
  return attributes.ptxVersion >= 90;
}

}  // namespace

bool can_overlap(const CudaQueue& queue) {
  static const bool compiled = compiled_to_wait();  // all kernels are compiled alike
  // A kernel that waits would wait for the end of the kernel whose beginning its queue waited for.
  return compiled && queue.limits.compute_capability >= 90 && !queue.is_beside();
}

}  // namespace fm
