// What attention's 16-bit kernels need beside kernels/base/mma.cuh, by shared addresses worked out
// once: asynchronous copies, 8 x 8 matrices from and to shared memory, rounded fragments. Source:
// the PTX ISA, sections on cp.async, ldmatrix and stmatrix.
#pragma once

#include <cstdint>

#include "kernels/base/approx.cuh"
#include "kernels/base/mma.cuh"

namespace fm::attention {

// Starts copying kBytes (4 or 16, both addresses aligned to them) to shared memory; zeros where
// `there` is false, and `from` is then not read. Sixteen bytes pass by the L1 cache.
template <int kBytes>
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool there) {
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
}

// Waits for the copies this thread has started.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8, 16 bytes. Lane
// (g, t) gets row g, columns 2t, 2t + 1 of each; transposed: column g, rows 2t, 2t + 1.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row_in_shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_in_shared)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4],
                                                         unsigned row_in_shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_in_shared)
               : "memory");
}

// The inverse of load_matrices.
__device__ __forceinline__ void store_matrices(unsigned row_in_shared, const unsigned (&from)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row_in_shared), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#else
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = __shfl_sync(~0u, row_in_shared, i * 8 + lane / 4);
    asm volatile("st.shared.b32 [%0], %1;" : : "r"(row + lane % 4 * 4), "r"(from[i]) : "memory");
  }
#endif
}

// Two floats rounded to T, the first in the low half.
template <class T>
__device__ __forceinline__ unsigned pack(float low, float high) {
  if constexpr (std::is_same_v<T, f16>) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
  }
}
template <class T>
__device__ __forceinline__ float2 unpack(unsigned both) {
  return {widen(T{static_cast<std::uint16_t>(both)}),
          widen(T{static_cast<std::uint16_t>(both >> 16)})};
}

// Sum of the products of two pairs.
template <class T>
__device__ __forceinline__ float dot(unsigned a, unsigned b) {
  const float2 x = unpack<T>(a), y = unpack<T>(b);
  return fmaf(x.x, y.x, x.y * y.y);
}

// Zeros in an A from column `left` on.
__device__ __forceinline__ void keep_columns(unsigned (&a)[4], int left) {
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int column = part / 2 * 8 + pair;
    if (column >= left) a[part] = 0;
    else if (column + 1 == left) a[part] &= 0xffffu;
  }
}

// Sums of two neighbouring 16 x 8 tiles, rounded: the A of a product over their 16 columns.
template <class T>
__device__ __forceinline__ void round_to_a(unsigned (&a)[4], const float (&left)[4],
                                           const float (&right)[4]) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

}  // namespace fm::attention
