#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/residual_gate/residual_gate.h"

namespace fm {
namespace {

constexpr int kWide = 4;  // columns of an access: 16 bytes of the stream
constexpr int kForwardThreads = 256;
constexpr int kBackwardThreads = 512;
constexpr int kRows = 4;  // a warp's rows in flight: all loads come before the first store
constexpr int kBackwardColumns = kWarp * kWide;  // a block's: its warps own rows

// A thread owns four neighbouring columns of a row; a block stays inside one image.
template <class T>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(ResidualGateForward<T> p, unsigned blocks_per_image) {
  const unsigned image = blockIdx.x / blocks_per_image;
  const unsigned inside = (blockIdx.x % blocks_per_image * kForwardThreads + threadIdx.x) * kWide;
  const unsigned image_size = static_cast<unsigned>(p.shape.length) * p.shape.width;
  if (inside >= image_size) return;
  const std::int64_t at = static_cast<std::int64_t>(image) * image_size + inside;
  float x[kWide], f[kWide], gate[kWide];
  load_wide(x, p.x + at);
  load_wide(f, p.f + at);
  load_wide(gate, p.gate + image * p.shape.modulation_stride + inside % p.shape.width);
#pragma unroll
  for (int i = 0; i < kWide; ++i) x[i] += gate[i] * f[i];
  store_narrow(p.out + at, x);
}

// A block is an image and 128 of its columns: warps take its rows in turn, a lane keeps the sums of
// its four columns, and the warps' sums are added in order.
template <class T>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(ResidualGateBackward<T> p, unsigned tiles) {
  constexpr int kWarps = kBackwardThreads / kWarp;
  __shared__ __align__(16) float warp_sums[kWarps][kBackwardColumns];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int width = p.shape.width, length = p.shape.length;
  const std::int64_t image = blockIdx.x / tiles;
  const std::int64_t modulation = image * p.shape.modulation_stride;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * kBackwardColumns;
  const int column = first_column + lane * kWide;

  float dgate[kWide] = {};
  if (column < width) {
    float gate[kWide];
    load_wide(gate, p.gate + modulation + column);
    for (int first = warp; first < length; first += kWarps * kRows) {
      const std::int64_t at = (image * length + first) * width + column;
      const std::int64_t step = static_cast<std::int64_t>(kWarps) * width;
      float dout[kRows][kWide], f[kRows][kWide];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first + r * kWarps >= length) break;
        load_wide(dout[r], p.dout + at + r * step);
        load_wide(f[r], p.f + at + r * step);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first + r * kWarps >= length) break;
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          dgate[i] += dout[r][i] * f[r][i];
          dout[r][i] *= gate[i];
        }
        store_narrow(p.df + at + r * step, dout[r]);
      }
    }
  }
  store_narrow(&warp_sums[warp][lane * kWide], dgate);
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= kBackwardColumns || first_column + mine >= width) return;
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += warp_sums[i][mine];
  p.dgate[modulation + first_column + mine] = narrow<T>(sum);
}

unsigned checked_grid(std::int64_t batch, std::int64_t blocks_per_image) {
  FM_CHECK(batch * blocks_per_image <= kMaxGrid,
           "[residual_gate] too large for one launch, got a batch of ", batch, " images of ",
           blocks_per_image, " blocks");
  return static_cast<unsigned>(batch * blocks_per_image);
}

}  // namespace

template <class T>
void residual_gate_forward(CudaQueue& queue, const ResidualGateForward<T>& p) {
  check_shape(p.shape);
  const std::int64_t image_size = static_cast<std::int64_t>(p.shape.length) * p.shape.width;
  const std::int64_t blocks = ceil_div(image_size, kForwardThreads * kWide);
  launch(queue, "residual_gate_forward", forward_kernel<T>, checked_grid(p.shape.batch, blocks),
         kForwardThreads, 0, p, static_cast<unsigned>(blocks));
}

template <class T>
void residual_gate_backward(CudaQueue& queue, const ResidualGateBackward<T>& p) {
  check_shape(p.shape);
  const int tiles = ceil_div(p.shape.width, kBackwardColumns);
  launch(queue, "residual_gate_backward", backward_kernel<T>, checked_grid(p.shape.batch, tiles),
         kBackwardThreads, 0, p, static_cast<unsigned>(tiles));
}

template void residual_gate_forward(CudaQueue&, const ResidualGateForward<float>&);
template void residual_gate_forward(CudaQueue&, const ResidualGateForward<f16>&);
template void residual_gate_forward(CudaQueue&, const ResidualGateForward<bf16>&);
template void residual_gate_backward(CudaQueue&, const ResidualGateBackward<float>&);
template void residual_gate_backward(CudaQueue&, const ResidualGateBackward<f16>&);
template void residual_gate_backward(CudaQueue&, const ResidualGateBackward<bf16>&);

}  // namespace fm
