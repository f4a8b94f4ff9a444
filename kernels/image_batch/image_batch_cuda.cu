#include "kernels/base/launch.cuh"
#include "kernels/image_batch/image_batch_sample.h"

namespace fm {
namespace {

constexpr int kThreads = 256;

// `per_image` blocks serve one image, a thread one pixel; every thread finds the image's number and
// shift for itself (see flow_cuda.cu).
__global__ void __launch_bounds__(kThreads) batch_kernel(ImageBatch<float> p, unsigned per_image) {
  const int b = static_cast<int>(blockIdx.x / per_image);
  const std::int64_t plane = std::int64_t{p.height} * p.width, pixels = p.channels * plane;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x % per_image) * kThreads + threadIdx.x;
  if (i >= pixels) return;
  const std::uint64_t step = p.state->step;
  const std::int64_t image = flow_image(p.images, p.batch, p.seed, step, b);
  const ImageShift shift = image_shift(p.max_shift, p.seed, step, b);
  if (i == 0) p.batch_labels[b] = p.labels[image];
  const std::int64_t at = i % plane;
  const int y = static_cast<int>(at / p.width) - shift.down;
  const int x = static_cast<int>(at % p.width) - shift.right;
  const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
  const std::uint8_t pixel =
      inside ? p.data[image * pixels + (i - at) + std::int64_t{y} * p.width + x] : 0;
  p.x[b * pixels + i] = flow_pixel(pixel, 0.0f);
}

}  // namespace

template <class R>
void image_batch(CudaQueue& queue, const ImageBatch<R>& p) {
  check_image_batch(p);
  const std::int64_t pixels = std::int64_t{p.channels} * p.height * p.width;
  const std::int64_t per_image = ceil_div(pixels, kThreads);
  FM_CHECK(p.batch * per_image <= kMaxGrid,
           "[image_batch] too many elements for one call, got batch ", p.batch, " of ", pixels);
  launch(queue, "image_batch", batch_kernel, dim3(static_cast<unsigned>(p.batch * per_image)),
         kThreads, 0, p, static_cast<unsigned>(per_image));
}

template void image_batch(CudaQueue&, const ImageBatch<float>&);

}  // namespace fm
