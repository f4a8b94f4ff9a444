#include "kernels/base/cuda_check.h"
#include "kernels/base/cuda_graph.h"

namespace fm {

struct CudaGraph::Executable {
  cudaGraphExec_t handle = nullptr;
  ~Executable() {
    if (handle) cudaGraphExecDestroy(handle);
  }
};

CudaGraph::CudaGraph(CudaQueue& queue, const std::function<void()>& work)
    : executable_(std::make_shared<Executable>()) {
  FM_CUDA_CHECK(cudaStreamBeginCapture(queue.stream(), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(queue.stream(), &graph);  // leave the stream usable
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  FM_CUDA_CHECK(cudaStreamEndCapture(queue.stream(), &graph));
  const cudaError_t status =
      cudaGraphInstantiate(&executable_->handle, graph, cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(graph);
  cuda_check(status, "cudaGraphInstantiate");
}

void CudaGraph::launch(CudaQueue& queue) const {
  FM_CUDA_CHECK(cudaGraphLaunch(executable_->handle, queue.stream()));
}

}  // namespace fm
