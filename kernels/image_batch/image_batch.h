// Batches of a data set for training a classifier: pixels to [-1, 1], each image moved by a random
// whole number of pixels, and their labels.
//
// A fresh permutation of the data set an epoch, the remainder after the last full batch dropped.
// Image b of step s is a function of (seed, s, b), the same bits on CPU and CUDA: what changes from
// step to step is read from StepState, so a captured graph can replay it. R is double or float on
// the CPU, float on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/base/step_state.h"

namespace fm {

template <class R>
struct ImageBatch {
  int batch;
  std::int64_t images;  // in the data set; at least `batch`
  int channels, height, width;
  const std::uint8_t* data;    // [images, C, H, W]
  const std::uint8_t* labels;  // [images]
  const StepState* state;
  std::uint64_t seed;
  int max_shift;               // pixels, up, down, left and right; paper (0) comes in at the edges
  R* x;                        // [B, C, H, W]
  std::int32_t* batch_labels;  // [B]
};

template <class R>
void image_batch(CpuQueue&, const ImageBatch<R>&);
template <class R>
void image_batch(CudaQueue&, const ImageBatch<R>&);

}  // namespace fm
