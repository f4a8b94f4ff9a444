// Hopper's tensor cores and copy engine (sm_90a): products of a warpgroup (wgmma) from shared
// memory or registers, tiles that arrive by themselves (TMA) and the barriers they report to.
// Source: the PTX ISA, sections on wgmma, mbarrier, cp.async.bulk.tensor and setmaxnreg.
//
// A tile in shared memory is made of panels: rows of 64 elements of 16 bits (128 bytes), at a
// multiple of 1024 bytes, the 16-byte chunk c of row r at place c ^ (r % 8). The same panel serves
// a product whose sum runs along its rows (kAlong) and one whose sum runs over them (kOver).
//
// A warp w of a warpgroup holds the sums of rows 16 w to 16 w + 15; the lane (g, q), g = lane / 4,
// of columns 8 j + 2q, + 1: in [4 j], [4 j + 1] those of row g, in [4 j + 2], [4 j + 3] of row
// g + 8.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/vec.cuh"

namespace fm {

// Whether code is compiled for it. Elsewhere only take_registers and give_registers may be called.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif

constexpr int kWarpgroup = 128;  // threads
constexpr int kPanel = 64;       // elements of a panel's row
constexpr unsigned kPanelRowBytes = 128;

// --- Barriers in shared memory

__device__ __forceinline__ void barrier_init(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// An arrival that also announces `bytes` of copies.
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase with this parity; a fresh barrier has just ended phase 1.
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "WAIT:\n\t"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n\t"
      "@!done bra WAIT;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Barriers among `threads` threads by number (0 is __syncthreads').
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- Copies by the copy engine

__device__ __forceinline__ void load_tile(unsigned to, const CUtensorMap& from, int column, int row,
                                          unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// Bytes and both addresses are multiples of 16.
__device__ __forceinline__ void load_bytes(unsigned to, const void* from, unsigned bytes,
                                           unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void store_tile(const CUtensorMap& to, int column, int row,
                                           unsigned from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}
// Until this thread's stores have read shared memory.
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Ordinary writes to shared memory before it are seen by products and the copy engine after it.
__device__ __forceinline__ void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Registers of a warpgroup's role. Elsewhere every role has those of the launch.

template <int kCount>
__device__ __forceinline__ void take_registers() {
  if constexpr (kHopper) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void give_registers() {
  if constexpr (kHopper) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- Products

// Before the first product of a group whose registers were written by others.
__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until only the newest `groups` groups are under way.
template <int groups>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

// How a product reads panels that begin at a shared address. Along: the sum runs along the rows.
// Over: it runs over them, and `next_panel` bytes on lie the next 64 columns.
__device__ __forceinline__ std::uint64_t panel_operand(unsigned address, unsigned next_panel = 16) {
  constexpr std::uint64_t kEightRows = 8 * kPanelRowBytes, kSwizzled = 1;
  return (address & 0x3ffff) >> 4 | std::uint64_t{next_panel >> 4} << 16 | (kEightRows >> 4) << 32 |
         kSwizzled << 62;
}
// Bytes to the operand of the next 16 terms of the sum.
constexpr unsigned kNextAlong = 32, kNextOver = 16 * kPanelRowBytes;
enum Sum { kAlong = 0, kOver = 1 };

#define FM_8(d, i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FM_32(d, i) FM_8(d, i), FM_8(d, i + 8), FM_8(d, i + 16), FM_8(d, i + 24)
#define FM_SUMS_32                                                          \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define FM_SUMS_64                                                              \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "     \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, " \
  "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, " \
  "%61, %62, %63}"
#define FM_PRODUCT_32(type)                                                      \
  asm volatile(                                                                  \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"                         \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " FM_SUMS_32 \
      ", %32, %33, p, 1, 1, %35, %36;\n\t}"                                      \
      : FM_32(sums, 0)                                                           \
      : "l"(a), "l"(b), "r"(int{add}), "n"(int{kA}), "n"(int{kB}))
#define FM_PRODUCT_64(type)                                                       \
  asm volatile(                                                                   \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"                          \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " FM_SUMS_64 \
      ", %64, %65, p, 1, 1, %67, %68;\n\t}"                                       \
      : FM_32(sums, 0), FM_32(sums, 32)                                           \
      : "l"(a), "l"(b), "r"(int{add}), "n"(int{kA}), "n"(int{kB}))
#define FM_PRODUCT_REGISTERS_64(type)                                             \
  asm volatile(                                                                   \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"                          \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " FM_SUMS_64 \
      ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n\t}"                           \
      : FM_32(sums, 0), FM_32(sums, 32)                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{add}), "n"(int{kB}))

// sums (+)= A B over 16 terms, A 64 rows, B 64 or 128 columns.
template <class T, Sum kA, Sum kB>
__device__ __forceinline__ void multiply(float (&sums)[32], std::uint64_t a, std::uint64_t b,
                                         bool add) {
  if constexpr (std::is_same_v<T, f16>) FM_PRODUCT_32("f16");
  else FM_PRODUCT_32("bf16");
}
template <class T, Sum kA, Sum kB>
__device__ __forceinline__ void multiply(float (&sums)[64], std::uint64_t a, std::uint64_t b,
                                         bool add) {
  if constexpr (std::is_same_v<T, f16>) FM_PRODUCT_64("f16");
  else FM_PRODUCT_64("bf16");
}
// The same with A from registers, a fragment as in kernels/base/mma.cuh.
template <class T, Sum kB>
__device__ __forceinline__ void multiply(float (&sums)[64], const unsigned (&a)[4], std::uint64_t b,
                                         bool add) {
  if constexpr (std::is_same_v<T, f16>) FM_PRODUCT_REGISTERS_64("f16");
  else FM_PRODUCT_REGISTERS_64("bf16");
}
#undef FM_8
#undef FM_32
#undef FM_SUMS_32
#undef FM_SUMS_64
#undef FM_PRODUCT_32
#undef FM_PRODUCT_64
#undef FM_PRODUCT_REGISTERS_64

// Four 8 x 8 matrices to shared memory; the lanes name and hold what load_matrices would give them.
__device__ __forceinline__ void store_matrices(unsigned row_in_shared, const unsigned (&from)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_in_shared),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
}

// --- On the host

// Boxes of 64 columns of 16-bit elements as panels, by the `rank` sizes of the whole and of a box
// and the strides in bytes of all but the first. What lies outside is read as zeros and not
// written.
inline CUtensorMap panel_map_of(const void* data, int rank, const cuuint64_t* sizes,
                                const cuuint64_t* strides, const cuuint32_t* box) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    FM_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                   cudaEnableDefault, &status));
#else
    FM_CUDA_CHECK(
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status));
#endif
    return reinterpret_cast<Encode>(found);
  }();
  CUtensorMap map{};
  const cuuint32_t step[] = {1, 1, 1};
  const CUresult result =
      encode ? encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, static_cast<cuuint32_t>(rank),
                      const_cast<void*>(data), sizes, strides, box, step,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
             : CUDA_ERROR_NOT_FOUND;
  if (result != CUDA_SUCCESS)
    fail(Fault::device, "[cuda] cuTensorMapEncodeTiled failed with ", static_cast<int>(result),
         " for [", sizes[1], ", ", sizes[0], "]");
  return map;
}

// Boxes of `box_rows` rows of a dense matrix [rows, columns].
inline CUtensorMap panel_map(const void* data, std::int64_t rows, std::int64_t columns,
                             int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {kPanel, static_cast<cuuint32_t>(box_rows)};
  return panel_map_of(data, 2, sizes, row_bytes, box);
}

}  // namespace fm
