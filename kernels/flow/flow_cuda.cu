#include <algorithm>

#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/flow/flow_check.h"
#include "kernels/flow/flow_sample.h"

namespace fm {
namespace {

constexpr int kThreads = 128;     // 196 groups of four pixels in a 28 x 28 image: two blocks
constexpr int kSumThreads = 256;  // of the loss

// Four neighbouring elements of a row of `count`, of which the last may be cut short. `wide`: rows
// are multiples of 4, so that the whole group exists and is aligned.
__device__ __forceinline__ void load_group(float (&to)[4], const float* row, std::int64_t first,
                                           std::int64_t count, bool wide) {
  if (wide) {
    load_wide(to, row + first);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = first + i < count ? row[first + i] : 0.0f;
  }
}
__device__ __forceinline__ void store_group(float* row, const float (&from)[4], std::int64_t first,
                                            std::int64_t count, bool wide) {
  if (wide) {
    store_narrow(row + first, from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < count) row[first + i] = from[i];
  }
}

// Four neighbouring pixels, in [-1, 1].
__device__ __forceinline__ void pixel_group(float (&to)[4], const std::uint8_t* row,
                                            std::int64_t first, std::int64_t count, bool wide) {
  Vec<std::uint8_t, 4> pixels = {};
  if (wide) {
    pixels = *reinterpret_cast<const Vec<std::uint8_t, 4>*>(row + first);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < count) pixels.at[i] = row[first + i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = flow_pixel(pixels.at[i], 0.0f);
}

__device__ __forceinline__ void path_group(const float (&x0)[4], const float (&x1)[4], float t,
                                           float (&x_t)[4], float (&target)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const FlowPoint<float> at = flow_point(x0[i], x1[i], t);
    x_t[i] = at.x_t;
    target[i] = at.target;
  }
}

// `per_image` blocks serve one image, a thread four pixels. Every thread finds the image's number
// and time for itself: some 300 integer instructions, cheaper than a kernel or a barrier for them.
__global__ void __launch_bounds__(kThreads)
    batch_kernel(Deferred<FlowBatch<float>> deferred, unsigned per_image) {
  const FlowBatch<float>& p = deferred.wait();
  const int b = static_cast<int>(blockIdx.x / per_image);
  const std::uint32_t group = blockIdx.x % per_image * kThreads + threadIdx.x;
  const std::int64_t first = static_cast<std::int64_t>(group) * 4, row = b * p.pixels;
  if (first >= p.pixels) return;
  const bool wide = p.pixels % 4 == 0;
  const std::uint64_t step = p.state->step;
  const std::int64_t image = flow_image(p.images, p.batch, p.seed, step, b);
  const float t = flow_time(p.time_sampling, p.seed, step, b);
  if (group == 0) {
    p.t[b] = t;
    if (p.labels)
      p.batch_labels[b] = flow_label(p.labels[image], p.classes, p.label_drop, p.seed, step, b);
  }
  const Normal4 noise = normal4(flow_key(p.seed, stream::noise, step, b), group);
  const float x0[4] = {noise.z0, noise.z1, noise.z2, noise.z3};
  float x1[4], x_t[4], target[4];
  pixel_group(x1, p.data + image * p.pixels, first, p.pixels, wide);
  path_group(x0, x1, t, x_t, target);
  store_group(p.x_t + row, x_t, first, p.pixels, wide);
  store_group(p.target + row, target, first, p.pixels, wide);
}

__global__ void __launch_bounds__(kThreads)
    interpolate_kernel(Deferred<FlowInterpolate<float>> deferred, unsigned per_image) {
  const FlowInterpolate<float>& p = deferred.wait();
  const int b = static_cast<int>(blockIdx.x / per_image);
  const std::uint32_t group = blockIdx.x % per_image * kThreads + threadIdx.x;
  const std::int64_t first = static_cast<std::int64_t>(group) * 4, row = b * p.pixels;
  if (first >= p.pixels) return;
  const bool wide = p.pixels % 4 == 0;
  float x0[4], x1[4], x_t[4], target[4];
  load_group(x0, p.x0 + row, first, p.pixels, wide);
  load_group(x1, p.x1 + row, first, p.pixels, wide);
  path_group(x0, x1, p.t[b], x_t, target);
  store_group(p.x_t + row, x_t, first, p.pixels, wide);
  store_group(p.target + row, target, first, p.pixels, wide);
}

__global__ void __launch_bounds__(kSumThreads)
    loss_kernel(Deferred<FlowLossForward<float>> deferred) {
  const FlowLossForward<float>& p = deferred.wait();
  __shared__ double shared[kSumThreads / kWarp];
  double sum = 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kSumThreads * 4;
  for (std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * 4;
       first < p.count; first += stride) {
    const bool wide = first + 4 <= p.count;
    float v[4], target[4], four = 0;
    load_group(v, p.v, first, p.count, wide);
    load_group(target, p.target, first, p.count, wide);
#pragma unroll
    for (int i = 0; i < 4; ++i) four += (v[i] - target[i]) * (v[i] - target[i]);
    sum += four;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) static_cast<double*>(p.workspace)[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads)
    loss_finish_kernel(Deferred<FlowLossForward<float>> deferred, int partials) {
  const FlowLossForward<float>& p = deferred.wait();
  finish_mean<kSumThreads>(p.workspace, partials, p.count, p.loss);
}

__global__ void __launch_bounds__(kSumThreads)
    loss_backward_kernel(Deferred<FlowLossBackward<float>> deferred, float two_over_count) {
  const FlowLossBackward<float>& p = deferred.wait();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * 4;
  if (first >= p.count) return;
  const bool wide = first + 4 <= p.count;
  const float factor = two_over_count * (p.state ? p.state->loss_scale : 1.0f);
  float v[4], target[4];
  load_group(v, p.v, first, p.count, wide);
  load_group(target, p.target, first, p.count, wide);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = factor * (v[i] - target[i]);
  store_group(p.dv, v, first, p.count, wide);
}

// Blocks an image, after checking that the whole grid can be launched.
unsigned blocks_per_image(int batch, std::int64_t pixels) {
  const std::int64_t blocks = ceil_div(pixels, 4 * kThreads);
  FM_CHECK(batch * blocks <= kMaxGrid, "[flow] too many elements for one call, got [", batch, ", ",
           pixels, "]");
  return static_cast<unsigned>(blocks);
}

}  // namespace

template <class R>
void flow_batch(CudaQueue& queue, const FlowBatch<R>& p) {
  check_flow_batch(p);
  const unsigned per_image = blocks_per_image(p.batch, p.pixels);
  launch(queue, "flow_batch", batch_kernel, dim3(p.batch * per_image), kThreads, 0, p, per_image);
}

template <class R>
void flow_interpolate(CudaQueue& queue, const FlowInterpolate<R>& p) {
  check_flow_shape(p.batch, p.pixels);
  const unsigned per_image = blocks_per_image(p.batch, p.pixels);
  launch(queue, "flow_interpolate", interpolate_kernel, dim3(p.batch * per_image), kThreads, 0, p,
         per_image);
}

template <class R>
void flow_loss_forward(CudaQueue& queue, const FlowLossForward<R>& p) {
  check_flow_count(p.count);
  const int partials =
      static_cast<int>(std::min<std::int64_t>(kLossPartials, ceil_div(p.count, 4 * kSumThreads)));
  launch(queue, "flow_loss_forward", loss_kernel, dim3(partials), kSumThreads, 0, p);
  launch(queue, "flow_loss_finish", loss_finish_kernel, dim3(1), kSumThreads, 0, p, partials);
}

template <class R>
void flow_loss_backward(CudaQueue& queue, const FlowLossBackward<R>& p) {
  check_flow_count(p.count);
  const std::int64_t blocks = ceil_div(p.count, 4 * kSumThreads);
  FM_CHECK(blocks <= kMaxGrid, "[flow] too many elements for one call, got ", p.count);
  launch(queue, "flow_loss_backward", loss_backward_kernel, dim3(static_cast<unsigned>(blocks)),
         kSumThreads, 0, p, static_cast<float>(2.0 / static_cast<double>(p.count)));
}

template void flow_batch(CudaQueue&, const FlowBatch<float>&);
template void flow_interpolate(CudaQueue&, const FlowInterpolate<float>&);
template void flow_loss_forward(CudaQueue&, const FlowLossForward<float>&);
template void flow_loss_backward(CudaQueue&, const FlowLossBackward<float>&);

}  // namespace fm
