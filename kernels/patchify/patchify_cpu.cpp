#include "kernels/base/parallel_for.h"
#include "kernels/patchify/patchify.h"

namespace fm {
namespace {

// Calls move(image, token) with the element offsets of one another for every element of image b.
template <class Move>
void for_each_element(const PatchShape& s, std::int64_t b, Move&& move) {
  const int rows = s.height / s.patch, columns = s.width / s.patch;
  std::int64_t token = b * s.channels * s.height * s.width;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      for (int channel = 0; channel < s.channels; ++channel)
        for (int r = 0; r < s.patch; ++r)
          for (int c = 0; c < s.patch; ++c, ++token) {
            const std::int64_t row = (b * s.channels + channel) * s.height + i * s.patch + r;
            move(row * s.width + j * s.patch + c, token);
          }
}

}  // namespace

template <class From, class To>
void patchify(CpuQueue& queue, const Patchify<From, To>& p) {
  check_shape(p.shape);
  parallel_for(queue, p.shape.batch, 1, [&](std::int64_t b, std::int64_t) {
    for_each_element(p.shape, b, [&](std::int64_t image, std::int64_t token) {
      p.tokens[token] = static_cast<To>(p.image[image]);
    });
  });
}

template <class From, class To>
void unpatchify(CpuQueue& queue, const Unpatchify<From, To>& p) {
  check_shape(p.shape);
  parallel_for(queue, p.shape.batch, 1, [&](std::int64_t b, std::int64_t) {
    for_each_element(p.shape, b, [&](std::int64_t image, std::int64_t token) {
      p.image[image] = static_cast<To>(p.tokens[token]);
    });
  });
}

template void patchify(CpuQueue&, const Patchify<float, float>&);
template void patchify(CpuQueue&, const Patchify<double, double>&);
template void unpatchify(CpuQueue&, const Unpatchify<float, float>&);
template void unpatchify(CpuQueue&, const Unpatchify<double, double>&);

}  // namespace fm
