// A grouped linear layer without bias and the RMSNorm of its result's segments, as one operation.
//
// A group: raw = x W^T, x [rows, in], W [out, in]; then each segment of raw's columns by itself:
//   y = xh weight,   xh = raw r,   r = 1 / sqrt(mean(raw^2) + eps)
// The segments lie side by side from column 0 and cover the row. Backward reads raw again; nothing
// else is saved:
//   draw = r (weight dy - xh mean(weight dy xh)),   dweight = sum over rows of dy xh
//   dx = draw W                  (dW = draw^T x is matmul's weight gradient)
// Everything is dense: x [rows, groups, in], W [groups, out, in], raw and y [rows, groups, out],
// weights [groups, segment width]. Statistics are in acc_t<T>. Sources: Zhang and Sennrich 2019,
// "Root Mean Square Layer Normalization"; on dt, B and C of a Mamba layer: Lieber et al. 2024,
// "Jamba". T is double or float on the CPU, float, f16 or bf16 on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {

struct LinearRmsNormShape {
  std::int64_t rows;
  int groups, in;
  int segments;  // 1 to 3
  int segment_width[kRmsNormMaxSegments];
  double eps;  // positive

  int out() const {
    int sum = 0;
    for (int s = 0; s < segments; ++s) sum += segment_width[s];
    return sum;
  }
  // The two operations that this one is.
  LinearShape product() const { return {.rows = rows, .in = in, .out = out(), .groups = groups}; }
  RmsNormShape norm() const {
    RmsNormShape shape{.rows = rows,
                       .groups = groups,
                       .width = out(),
                       .segments = segments,
                       .begin = {},
                       .segment_width = {},
                       .eps = eps};
    int column = 0;
    for (int s = 0; s < segments; ++s) {
      shape.begin[s] = column;
      shape.segment_width[s] = segment_width[s];
      column += segment_width[s];
    }
    return shape;
  }
};

template <class T>
struct LinearRmsNormForward {
  LinearRmsNormShape shape;
  const T* x;
  const T* w;
  const acc_t<T>* weight[kRmsNormMaxSegments];
  T* raw;
  T* y;
  bool keep_raw = true;  // false: raw is scratch memory, undefined afterwards
};

template <class T>
struct LinearRmsNormBackward {
  LinearRmsNormShape shape;
  const T* raw;
  const T* w;
  const acc_t<T>* weight[kRmsNormMaxSegments];
  const T* dy;
  T* draw;  // overwritten; may be dy
  T* dx;
  bool accumulate;                         // true: dx += draw W
  acc_t<T>* dweight[kRmsNormMaxSegments];  // overwritten
  void* workspace;                         // linear_rmsnorm_backward_workspace<T>(shape) bytes
};

// Throws Fault::usage for shapes outside the contract; every entry point calls it.
void linear_rmsnorm_check(const LinearRmsNormShape&);

// Partial sums of the weight gradients.
template <class T>
std::size_t linear_rmsnorm_backward_workspace(const LinearRmsNormShape& shape) {
  return rmsnorm_backward_workspace<T>(shape.norm());
}

template <class T>
void linear_rmsnorm_forward(CpuQueue&, const LinearRmsNormForward<T>&);
template <class T>
void linear_rmsnorm_forward(CudaQueue&, const LinearRmsNormForward<T>&);
template <class T>
void linear_rmsnorm_backward(CpuQueue&, const LinearRmsNormBackward<T>&);
template <class T>
void linear_rmsnorm_backward(CudaQueue&, const LinearRmsNormBackward<T>&);

}  // namespace fm
