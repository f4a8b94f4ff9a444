#include "kernels/base/parallel_for.h"
#include "kernels/image_batch/image_batch_sample.h"

namespace fm {

template <class R>
void image_batch(CpuQueue& queue, const ImageBatch<R>& p) {
  check_image_batch(p);
  const std::uint64_t step = p.state->step;
  const std::int64_t plane = std::int64_t{p.height} * p.width, pixels = p.channels * plane;
  parallel_for(queue, p.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (int b = static_cast<int>(begin); b < end; ++b) {
      const std::int64_t image = flow_image(p.images, p.batch, p.seed, step, b);
      const ImageShift shift = image_shift(p.max_shift, p.seed, step, b);
      p.batch_labels[b] = p.labels[image];
      const R paper = flow_pixel(0, R{});
      for (int row = 0; row < p.channels * p.height; ++row) {
        const int from_y = row % p.height - shift.down;
        R* to = p.x + b * pixels + std::int64_t{row} * p.width;
        if (from_y < 0 || from_y >= p.height) {
          std::fill(to, to + p.width, paper);
          continue;
        }
        const std::uint8_t* from =
            p.data + image * pixels + row / p.height * plane + std::int64_t{from_y} * p.width;
        const int first = std::max(shift.right, 0), last = std::min(p.width + shift.right, p.width);
        std::fill(to, to + first, paper);
        for (int x = first; x < last; ++x) to[x] = flow_pixel(from[x - shift.right], R{});
        std::fill(to + last, to + p.width, paper);
      }
    }
  });
}

template void image_batch(CpuQueue&, const ImageBatch<float>&);
template void image_batch(CpuQueue&, const ImageBatch<double>&);

}  // namespace fm
