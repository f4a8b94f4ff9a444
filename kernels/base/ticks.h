// Moments on a queue, taken without waiting for it: `capacity` slots, each overwritten by the next
// mark of it.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "kernels/base/queue.h"

namespace fm {

class CpuTicks {
 public:
  explicit CpuTicks(std::size_t capacity) : at_(capacity) {}
  void mark(CpuQueue&, std::size_t slot) { at_[slot] = std::chrono::steady_clock::now(); }
  double milliseconds(std::size_t from, std::size_t to) const {
    return std::chrono::duration<double, std::milli>(at_[to] - at_[from]).count();
  }

 private:
  std::vector<std::chrono::steady_clock::time_point> at_;
};

class CudaTicks {
 public:
  explicit CudaTicks(std::size_t capacity);
  void mark(CudaQueue& queue, std::size_t slot);
  double milliseconds(std::size_t from, std::size_t to) const;  // waits for both

 private:
  struct Events;
  std::shared_ptr<Events> events_;
};

}  // namespace fm
