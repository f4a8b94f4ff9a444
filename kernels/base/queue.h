// Where work runs: a CPU thread pool or a CUDA stream. Kernels are overloads on the queue's type.
//
// Work given to one queue runs in order. CpuQueue work has finished when the call returns;
// CudaQueue work is asynchronous until synchronize() or download(). Both are cheap to copy and
// share what they own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "kernels/base/memory_ledger.h"

struct CUstream_st;  // cudaStream_t and cudaEvent_t, without the CUDA headers
struct CUevent_st;

namespace fm {

class ThreadPool;
struct MatmulPlans;  // kernels/matmul: cuBLASLt handle, workspace and chosen algorithms

class CpuQueue {
 public:
  // 0 threads: one a core this process may use.
  explicit CpuQueue(int threads = 0);
  int threads() const;
  CpuQueue beside() const { return *this; }
  ThreadPool& pool() const { return *pool_; }
  MemoryLedger& memory() const { return *memory_; }

 private:
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<MemoryLedger> memory_ = std::make_shared<MemoryLedger>();
};

// What tile sizes are chosen from. Tests lower them to force the portable paths.
struct DeviceLimits {
  std::string name;                        // as the driver says it
  int index = 0;                           // CUDA device number
  int compute_capability = 0;              // 90 for sm_90
  int multiprocessors = 0;                 // SMs
  std::size_t shared_bytes_per_block = 0;  // opt-in dynamic shared memory a block may ask for
  std::size_t memory_bytes = 0;            // device memory in all
};

class CudaQueue {
 public:
  // Throws Fault::device where the device is missing or older than the kernels were built for.
  explicit CudaQueue(int device = 0);
  // A second queue of the device, for work beside this one's (fork, join) and after it where both
  // want the same multiprocessors; one memory ledger.
  CudaQueue beside() const;

  CUstream_st* stream() const;
  // For a kernel that leaves room at its end: the event to fire when all its blocks have begun, or
  // null where no fork awaits one (launch_with_room).
  CUevent_st* take_room() const;
  bool is_beside() const;
  MemoryLedger& memory() const { return *memory_; }
  DeviceLimits limits;
  std::shared_ptr<MatmulPlans> matmul_plans;  // made by the first matmul

 private:
  struct Stream;
  friend void await_room(CudaQueue&);
  friend void fork_at_room(CudaQueue& main, CudaQueue& side);
  friend void fork(CudaQueue& main, CudaQueue& side);
  friend void join(CudaQueue& main, CudaQueue& side);
  std::shared_ptr<Stream> stream_;
  std::shared_ptr<MemoryLedger> memory_ = std::make_shared<MemoryLedger>();
};

#if FM_CUDA
using Queue = std::variant<CpuQueue, CudaQueue>;
#else
using Queue = std::variant<CpuQueue>;
#endif

// Number of CUDA devices the process can use; 0 without a driver or in a CPU-only build.
int cuda_device_count() noexcept;

// Memory of the queue's device, 256-byte aligned. Throws Fault::device with the sizes when there is
// not enough.
void* allocate(CpuQueue&, std::size_t bytes);
void* allocate(CudaQueue&, std::size_t bytes);
void release(CpuQueue&, void* memory) noexcept;
void release(CudaQueue&, void* memory) noexcept;

// Bytes in use as the system sees it: on CUDA the device's, by all processes; on the CPU this
// process's peak.
std::size_t system_memory_in_use(CpuQueue&);
std::size_t system_memory_in_use(CudaQueue&);

// Ordered on the queue. `from` of an upload may be reused on return; a download has arrived on
// return.
void upload(CpuQueue&, void* to, const void* from_host, std::size_t bytes);
void upload(CudaQueue&, void* to, const void* from_host, std::size_t bytes);
void download(CpuQueue&, void* to_host, const void* from, std::size_t bytes);
void download(CudaQueue&, void* to_host, const void* from, std::size_t bytes);

// Device to device, and fills every byte with `value`; ordered on the queue, capturable in a graph.
void copy(CpuQueue&, void* to, const void* from, std::size_t bytes);
void copy(CudaQueue&, void* to, const void* from, std::size_t bytes);
void fill_bytes(CpuQueue&, void* memory, int value, std::size_t bytes);
void fill_bytes(CudaQueue&, void* memory, int value, std::size_t bytes);

// Two queues, one beside the other: after fork() the side's work waits for what `main` has been
// given so far; after fork_at_room(), of what main was given since await_room(), for nothing but
// the beginning of a kernel launched with room, if there was one. After join() main's work waits
// for all of the side's. On the CPU both are one queue.
inline void await_room(CpuQueue&) {}
inline void fork_at_room(CpuQueue&, CpuQueue&) {}
inline void fork(CpuQueue&, CpuQueue&) {}
inline void join(CpuQueue&, CpuQueue&) {}
void await_room(CudaQueue& main);
void fork_at_room(CudaQueue& main, CudaQueue& side);
void fork(CudaQueue& main, CudaQueue& side);
void join(CudaQueue& main, CudaQueue& side);

// Waits for all work of the queue; throws Fault::device if any of it failed.
void synchronize(CpuQueue&);
void synchronize(CudaQueue&);

}  // namespace fm
