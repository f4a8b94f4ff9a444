#include <cuda_runtime.h>

#include <utility>

#include "kernels/base/begin_beside.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/queue.h"

namespace fm {

struct CudaQueue::Stream {
  enum class Room { none, awaited, given };
  cudaStream_t handle = nullptr;
  cudaEvent_t forked = nullptr, joined = nullptr;
  Room room = Room::none;
  bool beside = false;

  explicit Stream(bool is_beside) : beside(is_beside) {
    int least = 0, greatest = 0;
    FM_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    FM_CUDA_CHECK(
        cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, beside ? least : greatest));
    for (cudaEvent_t* event : {&forked, &joined})
      FM_CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  }
  ~Stream() {
    for (cudaEvent_t event : {forked, joined})
      if (event) cudaEventDestroy(event);
    if (handle) cudaStreamDestroy(handle);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

int cuda_device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver is an answer, not a failure
  return 0;
}

CudaQueue::CudaQueue(int device) {
  const int count = cuda_device_count();
  if (device < 0 || device >= count)
    fail(Fault::device, "[device] cuda:", device, " is not there: ", count,
         " CUDA device(s) found; use --device cpu, or check the driver with nvidia-smi");
  FM_CUDA_CHECK(cudaSetDevice(device));
  cudaDeviceProp properties{};
  FM_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  limits.name = properties.name;
  limits.index = device;
  limits.compute_capability = properties.major * 10 + properties.minor;
  limits.multiprocessors = properties.multiProcessorCount;
  limits.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  limits.memory_bytes = properties.totalGlobalMem;
  if (limits.compute_capability < 80)
    fail(Fault::device, "[device] built for compute capability 8.0 and newer, found ",
         properties.name, " with ", properties.major, ".", properties.minor, "; use --device cpu");
  stream_ = std::make_shared<Stream>(false);
}

CudaQueue CudaQueue::beside() const {
  CudaQueue side = *this;
  side.matmul_plans = nullptr;  // two queues need two workspaces
  side.stream_ = std::make_shared<Stream>(true);
  return side;
}

bool CudaQueue::is_beside() const {
  return stream_->beside;
}

CUevent_st* CudaQueue::take_room() const {
  if (stream_->room != Stream::Room::awaited) return nullptr;
  stream_->room = Stream::Room::given;
  return stream_->forked;
}

void await_room(CudaQueue& main) {
  main.stream_->room = CudaQueue::Stream::Room::awaited;
}

void fork_at_room(CudaQueue& main, CudaQueue& side) {
  CudaQueue::Stream& stream = *main.stream_;
  const bool given =
      std::exchange(stream.room, CudaQueue::Stream::Room::none) == CudaQueue::Stream::Room::given;
  if (!given) return fork(main, side);
  FM_CUDA_CHECK(cudaStreamWaitEvent(side.stream(), stream.forked));
  begin_beside(side);
}

void fork(CudaQueue& main, CudaQueue& side) {
  FM_CUDA_CHECK(cudaEventRecord(main.stream_->forked, main.stream()));
  FM_CUDA_CHECK(cudaStreamWaitEvent(side.stream(), main.stream_->forked));
}

void join(CudaQueue& main, CudaQueue& side) {
  FM_CUDA_CHECK(cudaEventRecord(side.stream_->joined, side.stream()));
  FM_CUDA_CHECK(cudaStreamWaitEvent(main.stream(), side.stream_->joined));
}

CUstream_st* CudaQueue::stream() const {
  return stream_->handle;
}

void* allocate(CudaQueue& queue, std::size_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess) {
    queue.memory().add(memory, bytes);
    return memory;
  }
  cudaGetLastError();
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  fail(Fault::device, "[memory] out of device memory on ", queue.limits.name, ": asked for ",
       bytes >> 20, " MiB, ", free >> 20, " of ", total >> 20, " MiB are free; lower --batch");
}

void release(CudaQueue& queue, void* memory) noexcept {
  queue.memory().remove(memory);
  cudaFree(memory);
}

std::size_t system_memory_in_use(CudaQueue&) {
  std::size_t free = 0, total = 0;
  FM_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return total - free;
}

void upload(CudaQueue& queue, void* to, const void* from, std::size_t bytes) {
  FM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, queue.stream()));
  FM_CUDA_CHECK(cudaStreamSynchronize(queue.stream()));
}

void download(CudaQueue& queue, void* to, const void* from, std::size_t bytes) {
  FM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, queue.stream()));
  FM_CUDA_CHECK(cudaStreamSynchronize(queue.stream()));
}

void copy(CudaQueue& queue, void* to, const void* from, std::size_t bytes) {
  FM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, queue.stream()));
}

void fill_bytes(CudaQueue& queue, void* memory, int value, std::size_t bytes) {
  FM_CUDA_CHECK(cudaMemsetAsync(memory, value, bytes, queue.stream()));
}

void synchronize(CudaQueue& queue) {
  FM_CUDA_CHECK(cudaStreamSynchronize(queue.stream()));
}

}  // namespace fm
