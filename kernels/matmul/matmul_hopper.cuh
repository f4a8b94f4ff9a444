// What the weight gradient needs of Hopper (sm_90a) beside kernels/base/hopper.cuh: products as
// wide as its tiles, copies to all blocks of a cluster, barriers across one. Source: the PTX ISA,
// sections on wgmma, cp.async.bulk.tensor, mbarrier and mapa.
#pragma once

#include "kernels/base/hopper.cuh"

namespace fm {

// --- Clusters

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All blocks of the cluster have come here, and know the barriers that others initialised and made
// ready (barriers_ready). Orders nothing else.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// An arrival at what is `barrier` in the block `rank` of the cluster. What it reports is that
// something was read; writes are not published to that block.
__device__ __forceinline__ void barrier_arrive_at(unsigned barrier, unsigned rank) {
  asm volatile(
      "{\n\t.reg .b32 there;\n\t"
      "mapa.shared::cluster.u32 there, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// --- Copies by the copy engine

// The map will be used soon.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A box of a group; to every block in `blocks` (a bit each) at the same address and barrier.
__device__ __forceinline__ void load_box(unsigned to, const CUtensorMap& from, int column, int row,
                                         int group, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(group), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void load_box_to_all(unsigned to, const CUtensorMap& from, int column,
                                                int row, int group, unsigned barrier,
                                                unsigned short blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&from), "r"(column), "r"(row), "r"(group), "r"(barrier), "h"(blocks)
      : "memory");
}

// This thread's stores since the last time are a group.
__device__ __forceinline__ void stores_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until all of them but the newest `groups` groups have read shared memory.
template <int groups>
__device__ __forceinline__ void stores_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(groups) : "memory");
}

// --- Products

// As panel_operand, of rows of 8 elements that follow one another: the sum runs over them.
__device__ __forceinline__ std::uint64_t narrow_operand(unsigned address) {
  constexpr std::uint64_t kEightRows = 8 * 16;
  return (address & 0x3ffff) >> 4 | (kEightRows >> 4) << 16 | (kEightRows >> 4) << 32;
}

#define FM_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FM_16(d, i) FM_4(d, i), FM_4(d, i + 4), FM_4(d, i + 8), FM_4(d, i + 12)
#define FM_PRODUCT_4(type)                                       \
  asm volatile(                                                  \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %6, 0;\n\t"          \
      "wgmma.mma_async.sync.aligned.m64n8k16.f32." type "." type \
      " {%0, %1, %2, %3}, %4,"                                   \
      " %5, p, 1, 1, %7, %8;\n\t}"                               \
      : FM_4(sums, 0)                                            \
      : "l"(a), "l"(b), "r"(int{add}), "n"(int{kA}), "n"(int{kB}))
#define FM_PRODUCT_68(type)                                                                        \
  asm volatile(                                                                                    \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %70, 0;\n\t"                                           \
      "wgmma.mma_async.sync.aligned.m64n136k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, " \
      "%37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, " \
      "%55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67}, %68, %69, p, 1, 1, %71, " \
      "%72;\n\t}"                                                                                  \
      : FM_16(sums, 0), FM_16(sums, 16), FM_16(sums, 32), FM_16(sums, 48), FM_4(sums, 64)          \
      : "l"(a), "l"(b), "r"(int{add}), "n"(int{kA}), "n"(int{kB}))

// multiply of 8 and 136 columns of B.
template <class T, Sum kA, Sum kB>
__device__ __forceinline__ void multiply(float (&sums)[4], std::uint64_t a, std::uint64_t b,
                                         bool add) {
  if constexpr (std::is_same_v<T, f16>) FM_PRODUCT_4("f16");
  else FM_PRODUCT_4("bf16");
}
template <class T, Sum kA, Sum kB>
__device__ __forceinline__ void multiply(float (&sums)[68], std::uint64_t a, std::uint64_t b,
                                         bool add) {
  if constexpr (std::is_same_v<T, f16>) FM_PRODUCT_68("f16");
  else FM_PRODUCT_68("bf16");
}
#undef FM_4
#undef FM_16
#undef FM_PRODUCT_4
#undef FM_PRODUCT_68

// --- On the host

// Panels of `box_rows` rows of groups [rows, columns] of 16-bit elements, at these distances in
// elements; the address and the distances' bytes are multiples of 16. What lies outside is read as
// zeros.
inline CUtensorMap box_map(const void* data, std::int64_t columns, std::int64_t rows,
                           std::int64_t groups, std::int64_t row_stride, std::int64_t group_stride,
                           int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(groups)};
  const cuuint64_t bytes[] = {static_cast<cuuint64_t>(row_stride) * 2,
                              static_cast<cuuint64_t>(group_stride) * 2};
  const cuuint32_t box[] = {kPanel, static_cast<cuuint32_t>(box_rows), 1};
  return panel_map_of(data, 3, sizes, bytes, box);
}

// Where a ring of stages stands, and the parity of its round.
struct RingStage {
  int at = 0;
  unsigned phase = 0;
  __device__ void next(int stages) {
    if (++at == stages) at = 0, phase ^= 1;
  }
};

}  // namespace fm
