// Shapes, tolerances and work of flow.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/flow/flow.h"

namespace fm {

struct FlowShape {
  int batch;
  std::int64_t pixels;
  std::int64_t images;  // in the data set
};

inline constexpr FlowShape kFlowCases[] = {
    {1, 1, 1}, {3, 7, 10}, {2, 1000, 7}, {16, 784, 100}, {5, 3 * 33 * 33, 23},
};
inline constexpr FlowShape kFlowPaper = {256, 784, 60000};

// Interpolation rounds three times in float, the loss and its gradient about as often, and the sum
// is kept in double. FlowBatch has no tolerance: the bits agree. Nothing here is f16 or bf16.
inline constexpr Tolerance kFlowTolerance = {3e-7, 0, 0};

inline double flow_elements(const FlowShape& s) {
  return static_cast<double>(s.batch) * static_cast<double>(s.pixels);
}
// Noise as in random_cases.h, then the pixel and the path.
inline Work flow_batch_work(const FlowShape& s) {
  const double elements = flow_elements(s);
  return {(1 + 4 + 4) * elements, 52 * elements, 0.5 * elements};
}
inline Work flow_interpolate_work(const FlowShape& s) {
  return {16 * flow_elements(s), 4 * flow_elements(s), 0};
}
inline Work flow_loss_forward_work(std::int64_t count) {
  return {8 * static_cast<double>(count), 3 * static_cast<double>(count), 0};
}
inline Work flow_loss_backward_work(std::int64_t count) {
  return {12 * static_cast<double>(count), 2 * static_cast<double>(count), 0};
}

}  // namespace fm
