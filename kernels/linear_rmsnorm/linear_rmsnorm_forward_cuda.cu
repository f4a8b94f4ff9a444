#include "kernels/linear_rmsnorm/linear_rmsnorm_forward.cuh"

// Bound by memory: at the paper's shape 7 GFLOP and 106 MB. A warp's x comes in stages of 64
// columns, four of them under way or in use; each is refilled as soon as it was read. Twelve warps
// of a multiprocessor have 96 KB of x there or on the way.

namespace fm {
namespace {

using namespace linear_rmsnorm;

template <class T>
constexpr int kWarpElements = Stages<T>::kCount* Stages<T>::kElements;

template <int kQuads, class T>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    forward_kernel(const __grid_constant__ Deferred<LinearRmsNormForward<T>> deferred,
                   const __grid_constant__ Columns columns) {
  const LinearRmsNormForward<T>& p = deferred.wait();
  extern __shared__ __align__(128) unsigned char memory[];
  const int in = p.shape.in, groups = p.shape.groups, group = static_cast<int>(blockIdx.x) % groups;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  T* const w = reinterpret_cast<T*>(memory);
  T* const stages = w + kSlots<kQuads> * in;
  float* const weight = reinterpret_cast<float*>(stages + warps * kWarpElements<T>);
  const Octets<kQuads> octets(columns, group);
  const Tiles tiles(p.shape.rows, groups);

  fetch_matrix(w, p.w + static_cast<std::int64_t>(group) * columns.out * in, columns, octets, in);
  commit_copies();
  fetch_weights(weight, kSlots<kQuads>, columns, p.weight, group);

  Stages<T> x(stages + warp * kWarpElements<T>, p.x, p.shape, group, tiles);
  for (int stage = 0; stage < x.kCount; ++stage) x.refill();
  wait_copies<x.kCount>();  // W
  __syncthreads();

  for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    Sums<kQuads> sums = {};
    for (int k = 0; k < in; k += kPanel) {
      wait_copies<x.kCount - 1>();
      __syncwarp();
      multiply_stage<kQuads>(sums, x.oldest(), w + k * kSlots<kQuads>);
      __syncwarp();
      x.refill();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = std::int64_t{tile} * kTileRows + i * 8 + lane / 4;
      finish_row<kQuads>(sums, i, row < p.shape.rows, (row * groups + group) * columns.out, p,
                         columns, octets, weight);
    }
  }
}

}  // namespace

template <class T>
bool linear_rmsnorm_forward_fused(CudaQueue& queue, const LinearRmsNormForward<T>& p) {
  const LinearRmsNormShape& shape = p.shape;
  if (!shape_fits(queue, shape, kLeastTiles) || !aligned<T>({p.x, p.w, p.raw, p.y})) return false;
  bool done = false;
  with_quads(shape.out(), [&]<int kQuads>() {
    const std::size_t fixed = kSlots<kQuads> * (shape.in * sizeof(T) + sizeof(float));
    done = launch_forward(queue, "linear_rmsnorm_forward", forward_kernel<kQuads, T>, shape, fixed,
                          kWarpElements<T> * sizeof(T), p);
  });
  return done;
}

template bool linear_rmsnorm_forward_fused(CudaQueue&, const LinearRmsNormForward<f16>&);
template bool linear_rmsnorm_forward_fused(CudaQueue&, const LinearRmsNormForward<bf16>&);

}  // namespace fm
