#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/queue.h"

namespace fm {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::int64_t kCopyGrain = 1 << 20;  // bytes a thread copies at a time

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace

CpuQueue::CpuQueue(int threads)
    : pool_(std::make_shared<ThreadPool>(threads > 0 ? threads : usable_cores())) {}

int CpuQueue::threads() const {
  return pool_->threads();
}

void* allocate(CpuQueue& queue, std::size_t bytes) {
  const std::size_t rounded =
      (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, rounded);
  if (!memory)
    fail(Fault::device, "[memory] out of host memory, asked for ", rounded >> 20,
         " MiB; lower --batch");
  queue.memory().add(memory, rounded);
  return memory;
}

void release(CpuQueue& queue, void* memory) noexcept {
  queue.memory().remove(memory);
  std::free(memory);
}

std::size_t system_memory_in_use(CpuQueue&) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

void copy(CpuQueue& queue, void* to, const void* from, std::size_t bytes) {
  parallel_for(queue, static_cast<std::int64_t>(bytes), kCopyGrain,
               [&](std::int64_t begin, std::int64_t end) {
                 std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                             static_cast<std::size_t>(end - begin));
               });
}

void upload(CpuQueue& queue, void* to, const void* from, std::size_t bytes) {
  copy(queue, to, from, bytes);
}
void download(CpuQueue& queue, void* to, const void* from, std::size_t bytes) {
  copy(queue, to, from, bytes);
}
void fill_bytes(CpuQueue&, void* memory, int value, std::size_t bytes) {
  std::memset(memory, value, bytes);
}
void synchronize(CpuQueue&) {}

#if !FM_CUDA
int cuda_device_count() noexcept {
  return 0;
}
#endif

}  // namespace fm
