// Shapes, tolerances and work of the embeddings.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/embedding/embedding.h"

namespace fm {

struct EmbeddingShape {
  int batch, width, classes;
};

inline constexpr EmbeddingShape kEmbeddingCases[] = {
    {1, 4, 0}, {3, 12, 2}, {33, 100, 10}, {64, 128, 10}, {7, 1000, 3},
};
inline constexpr EmbeddingShape kEmbeddingPaper = {256, 128, 10};

// fp32: sums of up to 64 rows, 2^-24 each. fp16 and bf16: one rounding of the result, half an ulp:
// at most 2^-11 and 2^-8 of each element.
inline constexpr Tolerance kEmbeddingTolerance = {1e-6, 5e-4, 4e-3};

inline Work sinusoid_work(const EmbeddingShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.width;
  return {elements * static_cast<double>(size_of(t)), 2 * elements, 1.5 * elements};
}
inline Work label_forward_work(const EmbeddingShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.width;
  return {3 * elements * static_cast<double>(size_of(t)) + 4.0 * s.batch, elements, 0};
}
inline Work label_backward_work(const EmbeddingShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.width;
  const double table = (s.classes + 1.0) * s.width * static_cast<double>(size_of(acc_dtype(t)));
  return {elements * static_cast<double>(size_of(t)) + table + 4.0 * s.batch, elements, 0};
}
}  // namespace fm
