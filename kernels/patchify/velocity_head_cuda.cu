#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/patchify/velocity_head.h"

namespace fm {
namespace {

constexpr int kThreads = 128;
constexpr int kWide = 4;        // neighbouring columns of a thread
constexpr int kMostGroups = 4;  // of them, a warp's width apart
constexpr int kMostOutputs = 16;

// Zeros past the width.
template <int kGroups, class T>
__device__ __forceinline__ void load_columns(float (&to)[kGroups][kWide], const T* row, int width) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int column = (g * kWarp + static_cast<int>(threadIdx.x) % kWarp) * kWide;
    if (column < width) {
      load_wide(to[g], row + column);
    } else {
#pragma unroll
      for (int i = 0; i < kWide; ++i) to[g][i] = 0;
    }
  }
}

// A warp makes a token's outputs.
template <int kGroups, class T, class X>
__global__ void __launch_bounds__(kThreads)
    head_kernel(Deferred<VelocityHeadForward<T, X>> deferred) {
  const VelocityHeadForward<T, X>& p = deferred.wait();
  const int width = p.norm.width, lane = threadIdx.x % kWarp;
  const std::int64_t token =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (token >= static_cast<std::int64_t>(p.norm.batch) * p.norm.length) return;
  const std::int64_t image = token / p.norm.length;
  const int in_image = static_cast<int>(token % p.norm.length);
  const std::int64_t modulation = image * p.norm.modulation_stride;
  float x[kGroups][kWide], f[kGroups][kWide], gate[kGroups][kWide];
  float scale[kGroups][kWide], shift[kGroups][kWide];
  load_columns(x, p.x + token * width, width);
  load_columns(f, p.f + token * width, width);
  load_columns(gate, p.gate + image * p.norm.gate_stride, width);
  load_columns(scale, p.scale + modulation, width);
  load_columns(shift, p.shift + modulation, width);

  const float inverse = 1.0f / static_cast<float>(width);
  float sum = 0, squares = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      x[g][i] = widen(narrow<X>(x[g][i] + gate[g][i] * f[g][i]));
      sum += x[g][i];
    }
  const float mean = warp_sum(sum) * inverse;
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
    if ((g * kWarp + lane) * kWide < width)
#pragma unroll
      for (int i = 0; i < kWide; ++i) squares += (x[g][i] - mean) * (x[g][i] - mean);
  const float rstd = rsqrtf(warp_sum(squares) * inverse + static_cast<float>(kLayerNormEps));
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
#pragma unroll
    for (int i = 0; i < kWide; ++i)
      x[g][i] = (x[g][i] - mean) * rstd * (1.0f + scale[g][i]) + shift[g][i];

  const PatchShape& s = p.patches;
  const int outputs = s.channels * s.patch * s.patch, columns = s.width / s.patch;
  float mine = 0;  // output number `lane`
  for (int output = 0; output < outputs; ++output) {
    float w[kGroups][kWide], dot = 0;  // zeros past the width, where x is not
    load_columns(w, p.w + static_cast<std::int64_t>(output) * width, width);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < kWide; ++i) dot = fmaf(x[g][i], w[g][i], dot);
    dot = warp_sum(dot);
    if (lane == output) mine = dot;
  }
  if (lane >= outputs) return;
  const int c = lane % s.patch, r = lane / s.patch % s.patch, channel = lane / s.patch / s.patch;
  const int row = in_image / columns * s.patch + r, column = in_image % columns * s.patch + c;
  p.v[((image * s.channels + channel) * s.height + row) * s.width + column] =
      mine + widen(p.bias[lane]);
}

}  // namespace

bool velocity_head_fits(const ResidualNormShape& norm, const PatchShape& patches) {
  return norm.width <= kMostGroups * kWarp * kWide && token_width(patches) <= kMostOutputs;
}

template <class T, class X>
void velocity_head_forward(CudaQueue& queue, const VelocityHeadForward<T, X>& p) {
  check_shape(p.norm, true);
  check_shape(p.patches);
  FM_CHECK(velocity_head_fits(p.norm, p.patches) && p.norm.length == token_count(p.patches) &&
               p.norm.batch == p.patches.batch,
           "[velocity_head] ", p.norm.batch, " x ", p.norm.length, " tokens of ", p.norm.width,
           " must be images of patches of at most ", kMostOutputs, ", got ", p.patches.batch,
           " images of ", token_count(p.patches), " patches of ", token_width(p.patches));
  const std::int64_t tokens = static_cast<std::int64_t>(p.norm.batch) * p.norm.length;
  const std::int64_t blocks = ceil_div(tokens, kThreads / kWarp);
  FM_CHECK(blocks <= kMaxGrid, "[velocity_head] too large for one launch, got ", blocks, " blocks");
  const auto run = [&]<int kGroups>() {
    launch(queue, "velocity_head", head_kernel<kGroups, T, X>, dim3(static_cast<unsigned>(blocks)),
           kThreads, 0, p);
  };
  if (p.norm.width <= kWarp * kWide) run.template operator()<1>();
  else if (p.norm.width <= 2 * kWarp * kWide) run.template operator()<2>();
  else run.template operator()<kMostGroups>();
}

template void velocity_head_forward(CudaQueue&, const VelocityHeadForward<float, float>&);
template void velocity_head_forward(CudaQueue&, const VelocityHeadForward<f16, float>&);
template void velocity_head_forward(CudaQueue&, const VelocityHeadForward<f16, f16>&);
template void velocity_head_forward(CudaQueue&, const VelocityHeadForward<bf16, float>&);
template void velocity_head_forward(CudaQueue&, const VelocityHeadForward<bf16, bf16>&);

}  // namespace fm
