#include "apps/profile_window.h"

#include <charconv>
#include <limits>

#include "kernels/base/check.h"

#if FM_CUDA
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#endif

namespace fm {

ProfileSteps profile_steps(const std::string& text) {
  ProfileSteps steps;
  if (text.empty()) return steps;
  const char* const end = text.data() + text.size();
  const auto start = std::from_chars(text.data(), end, steps.start);
  bool right = start.ec == std::errc() && start.ptr != end && *start.ptr == ':';
  if (right) {
    const auto count = std::from_chars(start.ptr + 1, end, steps.count);
    right = count.ec == std::errc() && count.ptr == end && steps.count > 0 &&
            steps.start <= std::numeric_limits<std::uint64_t>::max() - steps.count;
  }
  FM_CHECK(right,
           "[train] profile must be START:STEPS, two whole numbers with at least one step, as in "
           "100:5, got ",
           text);
  return steps;
}

ProfileWindow::ProfileWindow(const Queue& queue) : queue_(queue) {
  std::visit([](auto& q) { synchronize(q); }, queue_);
#if FM_CUDA
  if (std::holds_alternative<CudaQueue>(queue_)) cudaProfilerStart();
#endif
}

ProfileWindow::~ProfileWindow() {
#if FM_CUDA
  // No throwing here: whatever failed is reported by the next call on the queue.
  if (const auto* cuda = std::get_if<CudaQueue>(&queue_)) {
    static_cast<void>(cudaStreamSynchronize(cuda->stream()));
    cudaProfilerStop();
  }
#endif
}

}  // namespace fm
