#include "apps/bench/probes.h"
#include "kernels/base/launch.cuh"

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksAnSm = 8;  // 2048 threads: as many as an SM of sm_80 or sm_90 holds
constexpr int kCopyUnroll = 4;  // 16-byte accesses in flight a thread
constexpr int kChains = 8;      // independent ones a thread, more than the units' latency needs
constexpr int kUnroll = 16;     // links of every chain a round

// First words of the sink: cycles and nanoseconds that one block took.
struct Clock {
  long long cycles;
  unsigned long long nanoseconds;
};

__device__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void copy_kernel(uint4* to, const uint4* from, std::int64_t count) {
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kThreads * kCopyUnroll + threadIdx.x;
  uint4 words[kCopyUnroll];
#pragma unroll
  for (int i = 0; i < kCopyUnroll; ++i)
    if (first + i * kThreads < count) words[i] = from[first + i * kThreads];
#pragma unroll
  for (int i = 0; i < kCopyUnroll; ++i)
    if (first + i * kThreads < count) to[first + i * kThreads] = words[i];
}

__global__ void read_kernel(const uint4* from, std::int64_t count, unsigned* sink) {
  unsigned mixed = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const uint4 words = from[i];
    mixed ^= words.x ^ words.y ^ words.z ^ words.w;
  }
  if (mixed == 0x9e3779b9u) sink[threadIdx.x] = mixed;  // almost never: keeps the loads
}

__device__ void keep(float sum, float* sink) {
  if (sum == 12345.678f) sink[sizeof(Clock) / sizeof(float) + threadIdx.x] = sum;
}

__global__ void fma_kernel(std::int64_t rounds, float* sink) {
  float sums[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  const long long cycles = clock64();
  const unsigned long long start = nanoseconds();
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma unroll
    for (int link = 0; link < kUnroll; ++link)
#pragma unroll
      for (int i = 0; i < kChains; ++i) sums[i] = __fmaf_rn(sums[i], 0.999f, 0.001f);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += sums[i];
  keep(sum, sink);
  if (blockIdx.x == 0 && threadIdx.x == 0)
    *reinterpret_cast<Clock*>(sink) = {clock64() - cycles, nanoseconds() - start};
}

__global__ void exponential_kernel(std::int64_t rounds, float* sink) {
  float x[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) x[i] = 0.1f * static_cast<float>(i);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma unroll
    for (int link = 0; link < kUnroll; ++link)
#pragma unroll
      for (int i = 0; i < kChains; ++i) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x[i]) : "f"(-x[i]));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += x[i];
  keep(sum, sink);
}

unsigned full_grid(const CudaQueue& queue) {
  return static_cast<unsigned>(queue.limits.multiprocessors * kBlocksAnSm);
}
double links(const CudaQueue& queue, std::int64_t rounds) {
  return static_cast<double>(rounds) * kUnroll * kChains * kThreads *
         static_cast<double>(full_grid(queue));
}

}  // namespace

void probe_copy(CudaQueue& queue, void* to, const void* from, std::size_t bytes) {
  const auto count = static_cast<std::int64_t>(bytes / sizeof(uint4));
  launch(queue, "probe_copy", copy_kernel,
         static_cast<unsigned>(ceil_div(count, kThreads * kCopyUnroll)), kThreads, 0,
         static_cast<uint4*>(to), static_cast<const uint4*>(from), count);
}

double probe_fma(CudaQueue& queue, std::int64_t rounds, void* sink) {
  launch(queue, "probe_fma", fma_kernel, full_grid(queue), kThreads, 0, rounds,
         static_cast<float*>(sink));
  return 2 * links(queue, rounds);
}

double probe_exponential(CudaQueue& queue, std::int64_t rounds, void* sink) {
  launch(queue, "probe_exponential", exponential_kernel, full_grid(queue), kThreads, 0, rounds,
         static_cast<float*>(sink));
  return links(queue, rounds);
}

double probed_clock_mhz(CudaQueue& queue, const void* sink) {
  Clock clock{};
  download(queue, &clock, sink, sizeof clock);
  return clock.nanoseconds
             ? 1e3 * static_cast<double>(clock.cycles) / static_cast<double>(clock.nanoseconds)
             : 0;
}

std::size_t cache_bytes(const CudaQueue& queue) {
  int bytes = 0;
  FM_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, queue.limits.index));
  return static_cast<std::size_t>(bytes);
}

void read_through(CudaQueue& queue, const void* from, std::size_t bytes, void* sink) {
  launch(queue, "read_through", read_kernel, full_grid(queue), kThreads, 0,
         static_cast<const uint4*>(from), static_cast<std::int64_t>(bytes / sizeof(uint4)),
         static_cast<unsigned*>(sink));
}

}  // namespace fm
