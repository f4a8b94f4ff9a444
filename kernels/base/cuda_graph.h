// A captured CUDA graph: a step's kernels, launched together.
#pragma once

#include <functional>
#include <memory>

#include "kernels/base/queue.h"

namespace fm {

class CudaGraph {
 public:
  // Captures what `work` enqueues on the queue (nothing runs). Whatever needs a first call must
  // have had it.
  CudaGraph(CudaQueue& queue, const std::function<void()>& work);
  void launch(CudaQueue& queue) const;

 private:
  struct Executable;
  std::shared_ptr<Executable> executable_;
};

}  // namespace fm
