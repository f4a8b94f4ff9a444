// Launching a kernel: checked, on the queue's stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>

#include "kernels/base/cuda_check.h"
#include "kernels/base/deferred.cuh"
#include "kernels/base/queue.h"

namespace fm {

constexpr int kWarp = 32;
constexpr std::int64_t kMaxGrid = 0x7fffffff;

template <class I, class J>
__host__ __device__ constexpr I ceil_div(I a, J b) {
  return static_cast<I>((a + b - 1) / b);
}

// FM_SYNC=1 waits after each kernel, so that a failure is reported where it happened (not during a
// graph capture).
inline bool sync_each_kernel() {
  static const bool on = [] {
    const char* value = std::getenv("FM_SYNC");
    return value && value[0] == '1';
  }();
  return on;
}

// A launch that failed, and under FM_SYNC a kernel that did.
inline void after_launch(CudaQueue& queue, const char* name) {
  cuda_check(cudaGetLastError(), name);
  if (!sync_each_kernel()) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cuda_check(cudaStreamIsCapturing(queue.stream(), &capture), name);
  if (capture == cudaStreamCaptureStatusNone)
    cuda_check(cudaStreamSynchronize(queue.stream()), name);
}

// Raises a kernel's dynamic shared memory limit where it needs more than 48 KB.
template <class... Params>
void allow_shared(const char* name, void (*kernel)(Params...), std::size_t bytes) {
  if (bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               name);
}

// launch(queue, "name", kernel, grid, block, shared_bytes, args...). A kernel whose arguments are
// Deferred may start before the last one has ended.
template <class... Params, class... Args>
void launch(CudaQueue& queue, const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
            std::size_t shared_bytes, Args&&... args) {
  allow_shared(name, kernel, shared_bytes);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream();
  config.attrs = &overlap;
  if constexpr (overlaps<Params...>()) config.numAttrs = can_overlap(queue);
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Args&&>(args)...), name);
  after_launch(queue, name);
}

// launch() with an attribute (a cluster, an overlap with the last kernel), where it is used.
template <class... Params>
void launch_with(CudaQueue& queue, const char* name, void (*kernel)(Params...),
                 cudaLaunchConfig_t config, cudaLaunchAttribute attribute, bool used,
                 const Params&... params) {
  config.stream = queue.stream();
  config.attrs = &attribute;
  config.numAttrs = used;
  allow_shared(name, kernel, config.dynamicSmemBytes);
  cuda_check(cudaLaunchKernelEx(&config, kernel, params...), name);
  after_launch(queue, name);
}

// launch() of a long kernel: fork_at_room() lets the side's work begin when all its blocks have
// begun, and so take nothing but the multiprocessors that the last of them leave idle. Not with
// overlap: that this kernel has begun has to mean that all before it is done.
template <class... Params, class... Args>
void launch_with_room(CudaQueue& queue, const char* name, void (*kernel)(Params...), unsigned grid,
                      unsigned block, std::size_t shared_bytes, Args&&... args) {
  static_assert(!overlaps<Params...>());
  cudaLaunchAttribute begun{};
  begun.id = cudaLaunchAttributeLaunchCompletionEvent;
  begun.val.launchCompletionEvent.event = queue.take_room();
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  launch_with(queue, name, kernel, config, begun, begun.val.launchCompletionEvent.event != nullptr,
              static_cast<Args&&>(args)...);
}

}  // namespace fm
