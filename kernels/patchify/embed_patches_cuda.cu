#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/patchify/patchify.h"

namespace fm {
namespace {

constexpr int kThreads = 128;
constexpr int kWide = 4;  // neighbouring columns of a thread
// Tokens of a warp, which then share its loads of the weights; where that leaves multiprocessors
// idle, each warp has one.
constexpr int kManyTokens = 4;

// Where element k of token l of an image lies in it.
__device__ __forceinline__ int image_offset(const PatchShape& s, int l, int k) {
  const int c = k % s.patch, r = k / s.patch % s.patch, channel = k / s.patch / s.patch;
  const int columns = s.width / s.patch;
  return (channel * s.height + l / columns * s.patch + r) * s.width + l % columns * s.patch + c;
}

// A warp makes kTokens rows of x, 128 columns at a time. Lane i holds elements i, i + 32, ... of
// each token in turn, and hands them round.
template <int kTokens, class T, class X>
__global__ void __launch_bounds__(kThreads) embed_kernel(Deferred<EmbedPatches<T, X>> deferred) {
  const EmbedPatches<T, X>& p = deferred.wait();
  const PatchShape& s = p.shape;
  const int in = s.channels * s.patch * s.patch, lane = threadIdx.x % kWarp;
  const int length = s.height / s.patch * (s.width / s.patch);
  const std::int64_t count = static_cast<std::int64_t>(s.batch) * length;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp) * kTokens;
  if (first >= count) return;

  for (int begin = 0; begin < p.width; begin += kWarp * kWide) {
    const int column = begin + lane * kWide;
    const bool mine = column < p.width;
    float sum[kTokens][kWide] = {};
    for (int k0 = 0; k0 < in; k0 += kWarp) {
      const int k = k0 + lane;
      float held[kTokens] = {};
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (k >= in || first + t >= count) continue;
        const std::int64_t image = (first + t) / length * (std::int64_t{length} * in);
        const int l = static_cast<int>((first + t) % length);
        const T rounded = narrow<T>(p.image[image + image_offset(s, l, k)]);
        held[t] = widen(rounded);
        if (p.tokens && begin == 0) p.tokens[(first + t) * in + k] = rounded;
      }
#pragma unroll 4
      for (int i = 0; i < min(kWarp, in - k0); ++i) {
        float w[kWide] = {};
#pragma unroll
        for (int c = 0; c < kWide; ++c)
          if (mine) w[c] = widen(p.w[static_cast<std::int64_t>(column + c) * in + k0 + i]);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const float element = __shfl_sync(0xffffffffu, held[t], i);
#pragma unroll
          for (int c = 0; c < kWide; ++c) sum[t][c] = fmaf(element, w[c], sum[t][c]);
        }
      }
    }
    if (!mine) continue;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= count) continue;
      float position[kWide];
      load_wide(position, p.position + (first + t) % length * p.width + column);
#pragma unroll
      for (int c = 0; c < kWide; ++c) sum[t][c] += widen(p.bias[column + c]) + position[c];
      store_narrow(p.x + (first + t) * p.width + column, sum[t]);
    }
  }
}

}  // namespace

template <class T, class X>
void embed_patches(CudaQueue& queue, const EmbedPatches<T, X>& p) {
  check_embedding(p.shape, p.width);
  const std::int64_t tokens = static_cast<std::int64_t>(p.shape.batch) * token_count(p.shape);
  const auto run = [&](auto kernel, int tokens_of_warp) {
    const std::int64_t blocks = ceil_div(tokens, tokens_of_warp * (kThreads / kWarp));
    FM_CHECK(blocks <= kMaxGrid, "[embed_patches] too large for one launch, got ", blocks,
             " blocks");
    launch(queue, "embed_patches", kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, p);
  };
  if (tokens < std::int64_t{kManyTokens} * (kThreads / kWarp) * queue.limits.multiprocessors)
    run(embed_kernel<1, T, X>, 1);
  else run(embed_kernel<kManyTokens, T, X>, kManyTokens);
}

template void embed_patches(CudaQueue&, const EmbedPatches<float, float>&);
template void embed_patches(CudaQueue&, const EmbedPatches<f16, float>&);
template void embed_patches(CudaQueue&, const EmbedPatches<f16, f16>&);
template void embed_patches(CudaQueue&, const EmbedPatches<bf16, float>&);
template void embed_patches(CudaQueue&, const EmbedPatches<bf16, bf16>&);

}  // namespace fm
