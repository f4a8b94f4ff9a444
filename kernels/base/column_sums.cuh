// The second stage of a sum over many rows: the first leaves partial sums, one row a block, and
// this adds them up, column by column and always in the same order.
#pragma once

#include <cstdint>

#include "kernels/base/launch.cuh"

namespace fm {

constexpr int kColumnSumRows = 32;  // partial rows that a block reads at a time

template <class Store>
struct ColumnSums {
  const float* partials;  // [pieces, columns]
  std::int64_t pieces, columns;
  Store store;
};

// A block sums 32 columns and hands each sum to store(column, sum).
// Eight loads are in flight a thread: the partials lie in the L2 cache, so latency is all there is.
template <class Store>
__global__ void __launch_bounds__(kWarp* kColumnSumRows)
    column_sums_kernel(const __grid_constant__ Deferred<ColumnSums<Store>> deferred) {
  const ColumnSums<Store>& p = deferred.wait();
  __shared__ float shared[kColumnSumRows][kWarp];
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (column < p.columns) {
#pragma unroll 8
    for (std::int64_t piece = row; piece < p.pieces; piece += kColumnSumRows)
      sum += p.partials[piece * p.columns + column];
  }
  shared[row][lane] = sum;
  __syncthreads();
  if (row > 0 || column >= p.columns) return;
#pragma unroll
  for (int r = 1; r < kColumnSumRows; ++r) sum += shared[r][lane];
  p.store(column, sum);
}

// `Store` is a struct with `__device__ void operator()(std::int64_t column, float sum) const`.
template <class Store>
void column_sums(CudaQueue& queue, const char* name, const float* partials, std::int64_t pieces,
                 std::int64_t columns, const Store& store) {
  launch(queue, name, column_sums_kernel<Store>,
         dim3(static_cast<unsigned>(ceil_div(columns, kWarp))), kWarp * kColumnSumRows, 0,
         ColumnSums<Store>{partials, pieces, columns, store});
}

}  // namespace fm
