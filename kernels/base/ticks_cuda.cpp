#include "kernels/base/cuda_check.h"
#include "kernels/base/ticks.h"

namespace fm {

struct CudaTicks::Events {
  std::vector<cudaEvent_t> at;
  ~Events() {
    for (cudaEvent_t event : at) cudaEventDestroy(event);
  }
};

CudaTicks::CudaTicks(std::size_t capacity) : events_(std::make_shared<Events>()) {
  for (std::size_t i = 0; i < capacity; ++i) {
    cudaEvent_t event = nullptr;
    FM_CUDA_CHECK(cudaEventCreate(&event));
    events_->at.push_back(event);
  }
}

void CudaTicks::mark(CudaQueue& queue, std::size_t slot) {
  FM_CUDA_CHECK(cudaEventRecord(events_->at[slot], queue.stream()));
}

double CudaTicks::milliseconds(std::size_t from, std::size_t to) const {
  FM_CUDA_CHECK(cudaEventSynchronize(events_->at[from]));
  FM_CUDA_CHECK(cudaEventSynchronize(events_->at[to]));
  float elapsed = 0;
  FM_CUDA_CHECK(cudaEventElapsedTime(&elapsed, events_->at[from], events_->at[to]));
  return elapsed;
}

}  // namespace fm
