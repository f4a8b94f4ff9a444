// Shapes and work of image_batch. There is no tolerance: the bits agree.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/image_batch/image_batch.h"

namespace fm {

struct ImageBatchShape {
  int batch;
  std::int64_t images;  // in the data set
  int channels, height, width, max_shift;
};

inline constexpr ImageBatchShape kImageBatchCases[] = {
    {1, 1, 1, 1, 1, 0},
    {3, 10, 1, 5, 7, 4},
    {4, 9, 3, 6, 6, 2},
    {16, 100, 1, 28, 28, 2},
};
inline constexpr ImageBatchShape kImageBatchClassifier = {128, 60000, 1, 28, 28, 2};

inline Work image_batch_work(const ImageBatchShape& s) {
  const double elements = static_cast<double>(s.batch) * s.channels * s.height * s.width;
  return {(1 + 4) * elements, 2 * elements, 0};
}

}  // namespace fm
