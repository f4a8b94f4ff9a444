#include "kernels/base/launch.cuh"
#include "kernels/base/rng.h"
#include "kernels/base/vec.cuh"
#include "kernels/random/random.h"

namespace fm {
namespace {

constexpr int kThreads = 128;

// A thread makes the four normals of one Philox group; `per_image` blocks serve one image.
__global__ void __launch_bounds__(kThreads) fill_kernel(NormalFill<float> p, unsigned per_image) {
  const std::int64_t image = blockIdx.x / per_image;
  const std::uint32_t group = blockIdx.x % per_image * kThreads + threadIdx.x;
  const std::int64_t first = static_cast<std::int64_t>(group) * 4;
  if (first >= p.pixels) return;
  const Normal4 n =
      normal4({p.seed, p.stream, 0, static_cast<std::uint32_t>(p.first_image + image)}, group);
  const float z[4] = {n.z0, n.z1, n.z2, n.z3};
  float* out = p.out + image * p.pixels + first;
  if (p.pixels % 4 == 0) {
    store_narrow(out, z);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < p.pixels) out[i] = z[i];
  }
}

}  // namespace

template <class R>
void normal_fill(CudaQueue& queue, const NormalFill<R>& p) {
  check_normal_fill(p.images, p.pixels, p.first_image);
  if (p.images == 0) return;
  const std::int64_t per_image = ceil_div(p.pixels, 4 * kThreads);
  FM_CHECK(p.images * per_image <= kMaxGrid, "[random] too many elements for one call, got [",
           p.images, ", ", p.pixels, "]");
  launch(queue, "normal_fill", fill_kernel, dim3(static_cast<unsigned>(p.images * per_image)),
         kThreads, 0, p, static_cast<unsigned>(per_image));
}

template void normal_fill(CudaQueue&, const NormalFill<float>&);

}  // namespace fm
