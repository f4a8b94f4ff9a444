#include <algorithm>
#include <cmath>

#include "kernels/base/reduce.cuh"
#include "kernels/cross_entropy/cross_entropy_check.h"

namespace fm {
namespace {

constexpr int kThreads = 256;  // eight warps, a row each
constexpr int kRows = kThreads / kWarp;
constexpr int kSumThreads = 256;

// A warp's row: its largest logit and the sum of exp(logit - largest), the same in every lane. A
// NaN is no maximum, but it reaches the sum.
struct Softmax {
  float largest, sum;
};
__device__ __forceinline__ Softmax softmax_of(const float* row, int classes, int lane) {
  float largest = -INFINITY, sum = 0;
  for (int j = lane; j < classes; j += kWarp) largest = fmaxf(largest, row[j]);
  largest = warp_max(largest);
  for (int j = lane; j < classes; j += kWarp) sum += expf(row[j] - largest);
  return {largest, warp_sum(sum)};
}

__global__ void __launch_bounds__(kThreads) forward_kernel(CrossEntropyForward<float> p) {
  __shared__ double shared[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kRows;
  double sum = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
       i < p.rows; i += stride) {
    const float* row = p.logits + i * p.classes;
    const Softmax softmax = softmax_of(row, p.classes, lane);
    const std::int32_t label = p.labels[i];
    const float right = label >= 0 && label < p.classes ? row[label] : NAN;
    if (lane == 0) sum += logf(softmax.sum) + softmax.largest - right;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) static_cast<double*>(p.workspace)[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads)
    forward_finish_kernel(CrossEntropyForward<float> p, int partials) {
  finish_mean<kSumThreads>(p.workspace, partials, p.rows, p.loss);
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(CrossEntropyBackward<float> p, float one_over_rows) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (i >= p.rows) return;
  const float* row = p.logits + i * p.classes;
  float* to = p.dlogits + i * p.classes;
  const Softmax softmax = softmax_of(row, p.classes, lane);
  const std::int32_t label = p.labels[i];
  const float factor = one_over_rows * (p.state ? p.state->loss_scale : 1.0f);
  const float weight = label >= 0 && label < p.classes ? factor : NAN;
  for (int j = lane; j < p.classes; j += kWarp)
    to[j] = weight * (expf(row[j] - softmax.largest) / softmax.sum - (j == label ? 1.0f : 0.0f));
}

}  // namespace

template <class R>
void cross_entropy_forward(CudaQueue& queue, const CrossEntropyForward<R>& p) {
  check_cross_entropy(p.rows, p.classes);
  const int partials =
      static_cast<int>(std::min<std::int64_t>(kCrossEntropyPartials, ceil_div(p.rows, kRows)));
  launch(queue, "cross_entropy_forward", forward_kernel, dim3(partials), kThreads, 0, p);
  launch(queue, "cross_entropy_finish", forward_finish_kernel, dim3(1), kSumThreads, 0, p,
         partials);
}

template <class R>
void cross_entropy_backward(CudaQueue& queue, const CrossEntropyBackward<R>& p) {
  check_cross_entropy(p.rows, p.classes);
  const std::int64_t blocks = ceil_div(p.rows, kRows);  // at most 2^29
  launch(queue, "cross_entropy_backward", backward_kernel, dim3(static_cast<unsigned>(blocks)),
         kThreads, 0, p, static_cast<float>(1.0 / static_cast<double>(p.rows)));
}

template void cross_entropy_forward(CudaQueue&, const CrossEntropyForward<float>&);
template void cross_entropy_backward(CudaQueue&, const CrossEntropyBackward<float>&);

}  // namespace fm
