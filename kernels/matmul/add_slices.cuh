// The second stage of a weight gradient whose rows were shared out in slices: the slices' sums, as
// the threads that made them hold them, are added in order and go to their places.
#pragma once

#include "kernels/base/launch.cuh"
#include "kernels/matmul/weight_gradient.h"

namespace fm {

__device__ __forceinline__ float4 operator+(float4 x, float4 y) {
  return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

__host__ __device__ constexpr int threads(const WeightTile& t) {
  return kWarp * t.warps_a * t.warps_b;
}
// A warp's 16 x 8 sums along A and B.
__host__ __device__ constexpr int fragments_a(const WeightTile& t) {
  return t.a / t.warps_a / 16;
}
__host__ __device__ constexpr int fragments_b(const WeightTile& t) {
  return t.b / t.warps_b / 8;
}

struct AddSlices {
  WeightTile tile;
  int tiles_a, tiles_b, groups, in, out;
  int slices, bias_slices;
  const float* parts;       // [slices, tiles, fragments, threads, 4]; undefined afterwards
  const float* bias_parts;  // [bias_slices, groups, out]; null: none
  float* dw;
  float* dbias;
};

void add_slices(CudaQueue&, const AddSlices&);

}  // namespace fm
