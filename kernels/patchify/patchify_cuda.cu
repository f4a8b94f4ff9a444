#include "kernels/base/convert.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/patchify/patchify.h"

namespace fm {
namespace {

constexpr int kThreads = 256;

// A thread owns one element of what is written, number `inside` of the image that begins at
// image_begin; false where there is none. A block stays inside one image, so that the divisions
// are of 32 bits.
__device__ __forceinline__ bool my_element(const PatchShape& s, unsigned blocks_per_image,
                                           std::int64_t& image_begin, unsigned& inside) {
  const unsigned size = static_cast<unsigned>(s.channels) * s.height * s.width;
  image_begin = static_cast<std::int64_t>(blockIdx.x / blocks_per_image) * size;
  inside = blockIdx.x % blocks_per_image * kThreads + threadIdx.x;
  return inside < size;
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    patchify_kernel(Deferred<Patchify<From, To>> deferred, unsigned blocks_per_image) {
  const Patchify<From, To>& p = deferred.wait();
  const PatchShape& s = p.shape;
  std::int64_t begin;
  unsigned token;
  if (!my_element(s, blocks_per_image, begin, token)) return;
  unsigned rest = token;
  const unsigned c = rest % s.patch;
  rest /= s.patch;
  const unsigned r = rest % s.patch;
  rest /= s.patch;
  const unsigned channel = rest % s.channels;
  rest /= s.channels;
  const unsigned columns = s.width / s.patch;
  const unsigned row = rest / columns * s.patch + r, column = rest % columns * s.patch + c;
  const unsigned image = (channel * s.height + row) * s.width + column;
  p.tokens[begin + token] = narrow<To>(widen(p.image[begin + image]));
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    unpatchify_kernel(Deferred<Unpatchify<From, To>> deferred, unsigned blocks_per_image) {
  const Unpatchify<From, To>& p = deferred.wait();
  const PatchShape& s = p.shape;
  std::int64_t begin;
  unsigned image;
  if (!my_element(s, blocks_per_image, begin, image)) return;
  const unsigned column = image % s.width;
  const unsigned row = image / s.width % s.height;
  const unsigned channel = image / s.width / s.height;
  const unsigned columns = s.width / s.patch;
  const unsigned patch = row / s.patch * columns + column / s.patch;
  const unsigned token =
      ((patch * s.channels + channel) * s.patch + row % s.patch) * s.patch + column % s.patch;
  p.image[begin + image] = narrow<To>(widen(p.tokens[begin + token]));
}

unsigned blocks_per_image(const PatchShape& s) {
  return static_cast<unsigned>(
      ceil_div(static_cast<std::int64_t>(s.channels) * s.height * s.width, kThreads));
}

unsigned checked_grid(const PatchShape& s) {
  const std::int64_t blocks = static_cast<std::int64_t>(s.batch) * blocks_per_image(s);
  FM_CHECK(blocks <= kMaxGrid, "[patchify] too large for one launch, got ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

}  // namespace

template <class From, class To>
void patchify(CudaQueue& queue, const Patchify<From, To>& p) {
  check_shape(p.shape);
  launch(queue, "patchify", patchify_kernel<From, To>, checked_grid(p.shape), kThreads, 0, p,
         blocks_per_image(p.shape));
}

template <class From, class To>
void unpatchify(CudaQueue& queue, const Unpatchify<From, To>& p) {
  check_shape(p.shape);
  launch(queue, "unpatchify", unpatchify_kernel<From, To>, checked_grid(p.shape), kThreads, 0, p,
         blocks_per_image(p.shape));
}

template void patchify(CudaQueue&, const Patchify<float, float>&);
template void patchify(CudaQueue&, const Patchify<float, f16>&);
template void patchify(CudaQueue&, const Patchify<float, bf16>&);
template void unpatchify(CudaQueue&, const Unpatchify<float, float>&);

}  // namespace fm
