#include "kernels/matmul/add_slices.cuh"
#include "kernels/matmul/matmul_mma.cuh"

namespace fm {
namespace {

// Four sums of a thread of slices_kernel to their places.
__device__ __forceinline__ void store_sums(const AddSlices& p, int index, float4 sum) {
  const int count = threads(p.tile);
  const int a = fragments_a(p.tile), b = fragments_b(p.tile);
  const int thread = index % count, fragment = index / count % (a * b);
  const int tile = index / count / (a * b);
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int row = tile / p.tiles_b % p.tiles_a * p.tile.a +
                  (warp / p.tile.warps_b * a + fragment / b) * 16 + lane / 4;
  const int column =
      tile % p.tiles_b * p.tile.b + (warp % p.tile.warps_b * b + fragment % b) * 8 + lane % 4 * 2;
  const int rows = p.tile.swapped ? p.in : p.out, columns = p.tile.swapped ? p.out : p.in;
  if (column >= columns) return;
  float* const dw = p.dw + static_cast<std::int64_t>(tile / (p.tiles_a * p.tiles_b)) * p.in * p.out;
  if (p.tile.swapped) {
    float* const to = dw + static_cast<std::int64_t>(column) * p.in + row;
    if (row < rows) to[0] = sum.x, to[p.in] = sum.y;
    if (row + 8 < rows) to[8] = sum.z, to[p.in + 8] = sum.w;
  } else {
    float* const to = dw + static_cast<std::int64_t>(row) * p.in + column;
    if (row < rows) *reinterpret_cast<float2*>(to) = {sum.x, sum.y};
    if (row + 8 < rows) *reinterpret_cast<float2*>(to + 8 * p.in) = {sum.z, sum.w};
  }
}

constexpr int kAddThreads = 256;

// kLanes threads share an element (four sums) and take every kLanes-th slice.
template <int kLanes>
__global__ void __launch_bounds__(kAddThreads) add_slices_kernel(AddSlices p) {
  constexpr int kElements = kAddThreads / kLanes;
  __shared__ float4 shared[kLanes][kElements];
  const int weights = p.groups * p.tiles_a * p.tiles_b * (p.tile.a * p.tile.b / 4);
  const int biases = p.bias_parts ? p.groups * p.out / 4 : 0;
  const int weight_blocks = ceil_div(weights, kElements);
  const bool bias = static_cast<int>(blockIdx.x) >= weight_blocks;
  const int own = threadIdx.x % kElements, slice_lane = threadIdx.x / kElements;
  const int index = (blockIdx.x - (bias ? weight_blocks : 0)) * kElements + own;
  const int count = bias ? biases : weights, slices = bias ? p.bias_slices : p.slices;

  wait_for_last_kernel();
  float4 sum = make_float4(0, 0, 0, 0);
  if (index < count) {
    const float4* from = reinterpret_cast<const float4*>(bias ? p.bias_parts : p.parts) + index;
#pragma unroll 4
    for (int slice = slice_lane; slice < slices; slice += kLanes)
      sum = sum + from[static_cast<std::int64_t>(slice) * count];
  }
  shared[slice_lane][own] = sum;
  __syncthreads();
  if (!bias && own % (kLineBytes / int{sizeof(float4)}) == 0)  // a line's readers are one warp's
    for (int slice = slice_lane; slice < slices; slice += kLanes)
      discard_line(reinterpret_cast<const float4*>(p.parts) +
                   static_cast<std::int64_t>(slice) * count + index);
  if (slice_lane || index >= count) return;
  for (int i = 1; i < kLanes; ++i) sum = sum + shared[i][own];
  if (bias) reinterpret_cast<float4*>(p.dbias)[index] = sum;
  else store_sums(p, index, sum);
}

}  // namespace

void add_slices(CudaQueue& queue, const AddSlices& p) {
  const int weights = p.groups * p.tiles_a * p.tiles_b * (p.tile.a * p.tile.b / 4);
  const int biases = p.bias_parts ? p.groups * p.out / 4 : 0;
  const auto add = [&]<int kLanes>() {
    constexpr int kElements = kAddThreads / kLanes;
    cudaLaunchConfig_t config{};
    config.gridDim =
        static_cast<unsigned>(ceil_div(weights, kElements) + ceil_div(biases, kElements));
    config.blockDim = kAddThreads;
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    launch_with(queue, "linear_add_slices", add_slices_kernel<kLanes>, config, overlap,
                queue.limits.compute_capability >= 90, p);
  };
  if (p.slices > 64) add.template operator()<32>();
  else add.template operator()<8>();
}

}  // namespace fm
