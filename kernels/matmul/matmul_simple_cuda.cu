// The product where cuBLASLt has no algorithm: a shared-memory tiled product on the plain cores.
#include "kernels/base/convert.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

constexpr int kTile = 64;   // rows and columns of d a block makes
constexpr int kDepth = 16;  // of the sum, a step
constexpr int kLanes = 16;  // threads along a side: each owns kOwn x kOwn elements, kLanes apart
constexpr int kOwn = kTile / kLanes;
constexpr int kThreads = kLanes * kLanes;

// tile[k][i] = x(first_i + i, first_k + k), zero outside. Neighbouring threads read neighbouring
// addresses whichever index lies inside.
template <class T>
__device__ void load_tile(float (&tile)[kDepth][kTile + 1], const Operand<T>& x,
                          std::int64_t first_i, std::int64_t extent, std::int64_t first_k,
                          std::int64_t depth) {
  for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
    const int i = x.k_inner ? e / kDepth : e % kTile;
    const int k = x.k_inner ? e % kDepth : e / kTile;
    const std::int64_t row = first_i + i, column = first_k + k;
    const bool inside = row < extent && column < depth;
    const std::int64_t at = x.k_inner ? row * x.ld + column : column * x.ld + row;
    tile[k][i] = inside ? widen(x.data[at]) : 0.0f;
  }
}

template <class T, class D>
__global__ void __launch_bounds__(kThreads) product_kernel(Product<T, D> p) {
  __shared__ float tile_a[kDepth][kTile + 1], tile_b[kDepth][kTile + 1];
  const std::int64_t first_i = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t first_j = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const int group = blockIdx.z;
  const int lane_i = threadIdx.x / kLanes, lane_j = threadIdx.x % kLanes;
  p.a.data += group * p.a.group_stride;
  p.b.data += group * p.b.group_stride;
  p.d += group * p.d_group_stride;

  float sum[kOwn][kOwn] = {};
  for (std::int64_t first_k = 0; first_k < p.k; first_k += kDepth) {
    load_tile(tile_a, p.a, first_i, p.m, first_k, p.k);
    load_tile(tile_b, p.b, first_j, p.n, first_k, p.k);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float a[kOwn], b[kOwn];
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        a[r] = tile_a[k][lane_i + r * kLanes];
        b[r] = tile_b[k][lane_j + r * kLanes];
      }
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) sum[r][c] += a[r] * b[c];
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r)
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      const std::int64_t i = first_i + lane_i + r * kLanes, j = first_j + lane_j + c * kLanes;
      if (i >= p.m || j >= p.n) continue;
      D* to = p.d + i * p.ldd + j;
      *to = narrow<D>(p.accumulate ? widen(*to) + sum[r][c] : sum[r][c]);
    }
}

}  // namespace

template <class T, class D>
void multiply_simple(CudaQueue& queue, const Product<T, D>& p) {
  // The x dimension of a grid is the long one: rows may be millions.
  const dim3 grid(static_cast<unsigned>(ceil_div(p.m, kTile)),
                  static_cast<unsigned>(ceil_div(p.n, kTile)), static_cast<unsigned>(p.groups));
  launch(queue, "matmul_simple", product_kernel<T, D>, grid, kThreads, 0, p);
}

template void multiply_simple(CudaQueue&, const Product<float, float>&);
template void multiply_simple(CudaQueue&, const Product<f16, f16>&);
template void multiply_simple(CudaQueue&, const Product<f16, float>&);
template void multiply_simple(CudaQueue&, const Product<bf16, bf16>&);
template void multiply_simple(CudaQueue&, const Product<bf16, float>&);

}  // namespace fm
