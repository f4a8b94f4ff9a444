// Standard normal noise, the same bits on CPU and CUDA: element e of image i is a function of
// (seed, stream, i, e), never of how many images are asked for. R is double or float on the CPU
// (the same float values), float on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class R>
struct NormalFill {
  std::int64_t images, pixels;
  std::int64_t first_image;  // number of out's first image
  std::uint64_t seed;
  std::uint32_t stream;  // what the noise is for: see kernels/base/rng.h
  R* out;                // [images, pixels], 16-byte aligned
};

// Philox counts images and groups of four elements in 32 bits.
inline void check_normal_fill(std::int64_t images, std::int64_t pixels, std::int64_t first_image) {
  constexpr std::int64_t kImages = std::int64_t{1} << 32, kPixels = std::int64_t{1} << 34;
  FM_CHECK(images >= 0 && first_image >= 0 && images <= kImages - first_image,
           "[random] images must have numbers in [0, 2^32), got ", images, " from ", first_image);
  FM_CHECK(pixels > 0 && pixels <= kPixels, "[random] pixels must be in [1, 2^34], got ", pixels);
}

template <class R>
void normal_fill(CpuQueue&, const NormalFill<R>&);
template <class R>
void normal_fill(CudaQueue&, const NormalFill<R>&);

}  // namespace fm
