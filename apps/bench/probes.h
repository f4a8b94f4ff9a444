// Small kernels that bring one resource of a machine to its limit: memory, fused multiply-adds,
// exponentials. What a roofline is measured with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/queue.h"

namespace fm {

// Copies by wide loads and stores on every core; `bytes` is a multiple of 16.
void probe_copy(CpuQueue&, void* to, const void* from, std::size_t bytes);
void probe_copy(CudaQueue&, void* to, const void* from, std::size_t bytes);

// Reads and writes memory in place: unlike a copy's, a CPU's stores then find their lines in the
// cache, so that fewer bytes travel for those that are counted.
void probe_update(CpuQueue&, void* memory, std::size_t bytes);

// Chains of multiply-adds, and of exponentials base 2, on every core, `rounds` long; they return
// how many operations that enqueues (two a multiply-add; one an exponential). `sink`: kSinkBytes
// that are written so that nothing is left out.
constexpr std::size_t kSinkBytes = 4096;
double probe_fma(CpuQueue&, std::int64_t rounds, void* sink);
double probe_fma(CudaQueue&, std::int64_t rounds, void* sink);
double probe_exponential(CpuQueue&, std::int64_t rounds, void* sink);
double probe_exponential(CudaQueue&, std::int64_t rounds, void* sink);

// Clock of a core while probe_fma ran last with this sink, in MHz; on the CPU as the system says
// it, 0 where it does not.
double probed_clock_mhz(CpuQueue&, const void* sink);
double probed_clock_mhz(CudaQueue&, const void* sink);

// Drops the caches' copies of memory that lies between `from` and `from + bytes`.
void evict(CpuQueue&, const void* from, std::size_t bytes);

// Bytes of the device's largest cache, and a pass over memory that fills it with clean lines:
// written lines would have to be written back while the next kernel runs.
std::size_t cache_bytes(const CudaQueue&);
void read_through(CudaQueue&, const void* from, std::size_t bytes, void* sink);

}  // namespace fm
