// The times of the latest steps on a queue, measured without making it wait.
#pragma once

#include <memory>
#include <vector>

#include "kernels/base/ticks.h"

namespace fm {

class Stopwatch {
 public:
  // Keeps the last `intervals` times.
  Stopwatch(const Queue& queue, std::size_t intervals);

  void mark(
      Queue& queue);  // a step ends (and the next begins) when the work enqueued so far is done
  void restart() {
    running_ = false;
  }  // what follows is no step (a checkpoint, a sample): the next mark only begins
  std::vector<double> intervals_ms() const;  // waits for the last mark

 private:
#if FM_CUDA
  using Ticks = std::variant<CpuTicks, CudaTicks>;
#else
  using Ticks = std::variant<CpuTicks>;
#endif
  Ticks ticks_;  // interval i runs from slot 2i to slot 2i + 1
  std::size_t intervals_, done_ = 0;
  bool running_ = false;
};

}  // namespace fm
