// The second stage of the weights' gradients of an RMSNorm: adds up the rows of the workspace.
#pragma once

#include <limits>

#include "kernels/base/column_sums.cuh"
#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {

// Where the sum of a column of the workspace goes.
struct StoreWeights {
  std::int64_t first[kRmsNormMaxSegments];  // column of a segment; none after the last
  float* dweight[kRmsNormMaxSegments];

  __device__ void operator()(std::int64_t column, float sum) const {
    int segment = kRmsNormMaxSegments - 1;
    while (column < first[segment]) --segment;
    dweight[segment][column - first[segment]] = sum;
  }
};

// workspace [pieces, shape.weights()].
inline void sum_weight_gradients(CudaQueue& queue, const RmsNormShape& shape,
                                 const float* workspace, std::int64_t pieces,
                                 float* const* dweight) {
  StoreWeights store{};
  std::int64_t columns = 0;
  for (int s = 0; s < kRmsNormMaxSegments; ++s) {
    store.first[s] = s < shape.segments ? columns : std::numeric_limits<std::int64_t>::max();
    store.dweight[s] = dweight[s];
    if (s < shape.segments) columns += shape.weights(s);
  }
  column_sums(queue, "rmsnorm_backward_sums", workspace, pieces, columns, store);
}

}  // namespace fm
