// Tensor-core products of 16-bit elements and what feeds them: asynchronous copies to shared memory
// and 8 x 8 matrices from it. sm_80 and newer. Source: the PTX ISA, sections on cp.async, ldmatrix
// and mma.
//
// In a fragment lane l stands at g = l / 4, q = l % 4. Of a 16 x 16 A it holds (row g, columns 2q,
// 2q + 1), the same of row g + 8, then both of columns 2q + 8, 2q + 9; of a 16 x 8 B (rows 2q,
// 2q + 1, column g), then rows 2q + 8, 2q + 9; of the 16 x 8 sums (row g, columns 2q, 2q + 1), then
// row g + 8.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/base/convert.cuh"
#include "kernels/base/vec.cuh"

namespace fm {

// Starts copying 16 bytes; zeros where `exists` is false, and `from` is then not read.
__device__ __forceinline__ void copy_async(void* to_shared, const void* from, bool exists) {
  const unsigned to = shared_address(to_shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
// The same for 4 bytes that are there.
__device__ __forceinline__ void copy_async_4(void* to_shared, const void* from) {
  const unsigned to = shared_address(to_shared);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"(to), "l"(from) : "memory");
}
// Closes a group of copies; wait_copies<n>() waits until only the newest n groups are under way.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int groups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(groups) : "memory");
}

// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8, 16 bytes. Lane (g, q) gets row g,
// columns 2q, 2q + 1 of each; transposed: column g, rows 2q, 2q + 1.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row_in_shared) {
  const unsigned from = shared_address(row_in_shared);
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// to = A B + from, [16, 16] times [16, 8]; T is f16 or bf16.
template <class T>
__device__ __forceinline__ void multiply_add(float (&to)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1, const float (&from)[4]) {
  if constexpr (std::is_same_v<T, f16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(from[0]), "f"(from[1]),
          "f"(from[2]), "f"(from[3]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(from[0]), "f"(from[1]),
          "f"(from[2]), "f"(from[3]));
}
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
  multiply_add<T>(sum, a, b0, b1, sum);
}

// Two ones.
template <class T>
constexpr unsigned kOnes = std::is_same_v<T, f16> ? 0x3c003c00u : 0x3f803f80u;

}  // namespace fm
