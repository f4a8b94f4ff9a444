// Standard normal noise, the same bits on CPU and CUDA: element e of image i is a function of
// (seed, stream, i, e), never of how many images are asked for. R is double or float on the CPU
// (the same float values), float on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

template <class R>
struct NormalFill {
  std::int64_t images, pixels;
  std::int64_t first_image;  // number of out's first image
  std::uint64_t seed;
  std::uint32_t stream;  // what the noise is for: see kernels/base/rng.h
  R* out;                // [images, pixels]
};

template <class R>
void normal_fill(CpuQueue&, const NormalFill<R>&);
template <class R>
void normal_fill(CudaQueue&, const NormalFill<R>&);

}  // namespace fm
