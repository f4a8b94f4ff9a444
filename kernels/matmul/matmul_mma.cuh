// What the weight gradient needs beside kernels/base/mma.cuh: copies and transposed 8 x 8 matrices
// by shared addresses worked out once, clusters, and what orders kernels. Source: the PTX ISA,
// sections on cp.async, ldmatrix, discard, barrier.cluster, mapa and griddepcontrol.
#pragma once

#include <cstdint>

#include "kernels/base/mma.cuh"

namespace fm {

// Starts copying kBytes (8 or 16, both addresses aligned to them) to shared memory; zeros where
// `there` is false, and `from` is then not read. 16 bytes pass by the L1 cache.
template <int kBytes>
__device__ __forceinline__ void copy_async(unsigned to_shared, const void* from, bool there) {
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(to_shared), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to_shared), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
}

// 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8, 16 bytes. Lane (g, t)
// gets column g, rows 2t, 2t + 1 of each.
__device__ __forceinline__ void load_transposed(unsigned (&to)[4], unsigned row_in_shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_in_shared)
               : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&to)[2], unsigned row_in_shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(row_in_shared)
               : "memory");
}

// The next kernel's blocks may start while this one's last ones run; it waits for what they write.
// Saves 1 us of the way from one kernel to the next (sm_90; elsewhere kernels just follow).
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

constexpr int kLineBytes = 128;  // of the L2 cache

// Drops a line from the L2 cache, where they were only on their way: they need not go to memory.
__device__ __forceinline__ void discard_line(const void* line) {
  asm volatile("discard.global.L2 [%0], %1;" ::"l"(line), "n"(kLineBytes) : "memory");
}

// All blocks of a cluster have come here; what they wrote to shared memory is seen by all.
__device__ __forceinline__ void synchronize_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
}
// What lies at this block's shared address in the block `rank` of its cluster.
__device__ __forceinline__ float4 load_from_cluster(unsigned shared, int rank) {
  float4 value{};
#if __CUDA_ARCH__ >= 900
  unsigned from;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(from) : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(from)
               : "memory");
#endif
  return value;
}

}  // namespace fm
