// Sums over a warp and over a block, in a fixed order: the same bits every time.
#pragma once

#include "kernels/base/launch.cuh"

namespace fm {

// Every lane gets the sum over aligned groups of `width` lanes (a power of two).
template <class T>
__device__ __forceinline__ T warp_sum(T x, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

__device__ __forceinline__ float warp_max(float x, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}

// Every thread gets the block's sum. `shared` holds one value a warp; blockDim.x is a multiple of
// 32, one-dimensional. Begins and ends with a barrier, so calls may follow one another on the same
// `shared`.
template <class T>
__device__ T block_sum(T x, T* shared) {
  x = warp_sum(x);
  const int warps = blockDim.x / kWarp;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = shared[0];
  for (int i = 1; i < warps; ++i) sum += shared[i];
  __syncthreads();
  return sum;
}

// The end of a mean over the whole grid: one block adds the blocks' partial sums, in a fixed order.
template <int kThreads>
__device__ void finish_mean(const void* partial_sums, int partials, std::int64_t count,
                            float* mean) {
  __shared__ double shared[kThreads / kWarp];
  double sum = 0;
  for (int i = threadIdx.x; i < partials; i += kThreads)
    sum += static_cast<const double*>(partial_sums)[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *mean = static_cast<float>(sum / static_cast<double>(count));
}

}  // namespace fm
