#include <vector>

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

template <class T, class X>
void embed_patches(CpuQueue& queue, const EmbedPatches<T, X>& p) {
  check_embedding(p.shape, p.width);
  const int in = token_width(p.shape), tokens = token_count(p.shape), width = p.width;
  parallel_for(queue, p.shape.batch, 1, [&](std::int64_t b, std::int64_t) {
    const std::int64_t first = b * tokens;
    std::vector<T> own;  // an image's tokens, where nobody keeps them
    if (!p.tokens) own.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(in));
    T* const patches = p.tokens ? p.tokens + first * in : own.data();
    for_each_element(p.shape, b, [&](std::int64_t image, std::int64_t token) {
      patches[token - first * in] = p.image[image];
    });
    for (std::int64_t l = 0; l < tokens; ++l) {
      for (std::int64_t j = 0; j < width; ++j) {
        T sum = 0;
        for (int k = 0; k < in; ++k) sum += patches[l * in + k] * p.w[j * in + k];
        p.x[(first + l) * width + j] = sum + p.bias[j] + p.position[l * width + j];
      }
    }
  });
}

template void embed_patches(CpuQueue&, const EmbedPatches<float, float>&);
template void embed_patches(CpuQueue&, const EmbedPatches<double, double>&);
template void patchify(CpuQueue&, const Patchify<float, float>&);
template void patchify(CpuQueue&, const Patchify<double, double>&);
template void unpatchify(CpuQueue&, const Unpatchify<float, float>&);
template void unpatchify(CpuQueue&, const Unpatchify<double, double>&);

}  // namespace fm
