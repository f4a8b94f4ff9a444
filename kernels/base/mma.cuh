// The instructions that 16-bit matrix kernels are made of: asynchronous copies, 8 x 8 matrices from
// shared memory and the m16n8k16 product. Source: the PTX ISA, sections on cp.async, ldmatrix and
// mma.
//
// In a fragment lane l stands at g = l / 4, t = l % 4. Of a 16 x 16 A it holds (row g, columns 2t,
// 2t + 1), the same of row g + 8, then both of columns 2t + 8, 2t + 9; of a 16 x 8 B (rows 2t,
// 2t + 1, column g), then rows 2t + 8, 2t + 9; of the 16 x 8 sums (row g, columns 2t, 2t + 1),
// then row g + 8.
#pragma once

#include <cstdint>

#include "kernels/base/convert.cuh"

namespace fm {

// 2^x within 2 ulp; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Starts copying kBytes (4, 8 or 16, both addresses aligned to them) to shared memory; zeros where
// `there` is false, and `from` is then not read.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to_shared, const void* from, bool there = true) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  const int bytes = there ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
               :
               : "r"(to), "l"(from), "n"(kBytes), "r"(bytes)
               : "memory");
}

// Closes a group of the copies this thread has started, and waits until at most kOpen groups are
// still under way.
__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kOpen>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8, 16 bytes. Lane
// (g, t) gets row g, columns 2t, 2t + 1 of each; transposed: column g, rows 2t, 2t + 1.
template <class T>
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const T* row_in_shared) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row_in_shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}
template <class T>
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4],
                                                         const T* row_in_shared) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row_in_shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// sum += A B, [16, 16] times [16, 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
  if constexpr (std::is_same_v<T, f16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace fm
