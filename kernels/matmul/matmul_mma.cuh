// The instructions the weight gradient is made of: asynchronous copies, transposed 8 x 8 matrices
// from shared memory, the m16n8k16 product, clusters and what orders kernels. Source: the PTX ISA,
// sections on cp.async, ldmatrix, mma, discard, barrier.cluster, mapa and griddepcontrol.
//
// In a fragment lane l stands at g = l / 4, t = l % 4. Of a 16 x 16 A it holds (row g, columns 2t,
// 2t + 1), the same of row g + 8, then both of columns 2t + 8, 2t + 9; of a 16 x 8 B (rows 2t,
// 2t + 1, column g), then rows 2t + 8, 2t + 9; of the 16 x 8 sums (row g, columns 2t, 2t + 1),
// then row g + 8.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/base/convert.cuh"

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

// Copies started since the last call are one group; waits until at most kGroups are on their way.
__device__ __forceinline__ void close_copy_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroups>
__device__ __forceinline__ void wait_for_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
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

// sum += A B, [16, 16] times [16, 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
  if constexpr (std::is_same_v<T, f16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
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

// Two ones.
template <class T>
constexpr unsigned kOnes = std::is_same_v<T, f16> ? 0x3c003c00u : 0x3f803f80u;

}  // namespace fm
