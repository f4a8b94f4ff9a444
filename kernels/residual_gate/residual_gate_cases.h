// Shapes, tolerances and work of residual_gate.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/residual_gate/residual_gate.h"

namespace fm {

inline constexpr ResidualGateShape kResidualGateCases[] = {
    {1, 1, 8, 16},      {3, 7, 104, 312},   {5, 196, 128, 768}, {2, 197, 136, 408},
    {1, 1000, 64, 128}, {2, 63, 520, 1040}, {2, 3, 4096, 8192},
};
inline constexpr ResidualGateShape kResidualGatePaper = {256, 196, 128, 768};

// fp32: sums of up to 1000 terms, each rounded (2^-24), grow like a random walk. fp16 and bf16: one
// rounding of the result, half an ulp: at most 2^-11 and 2^-8 of each element.
inline constexpr Tolerance kResidualGateTolerance = {2e-6, 5e-4, 4e-3};

inline Work residual_gate_forward_work(const ResidualGateShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.length * s.width;
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (2 * wide + narrow) + 1.0 * s.batch * s.width * narrow, 2 * elements, 0};
}
inline Work residual_gate_backward_work(const ResidualGateShape& s, DType t) {
  const double elements = static_cast<double>(s.batch) * s.length * s.width;
  const double wide = static_cast<double>(size_of(acc_dtype(t)));
  const double narrow = static_cast<double>(size_of(t));
  return {elements * (wide + 2 * narrow) + 2.0 * s.batch * s.width * narrow, 3 * elements, 0};
}

}  // namespace fm
