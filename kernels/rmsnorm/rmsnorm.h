// RMSNorm of up to three segments of a row: x / sqrt(mean(x^2) + eps) * weight, each segment by
// itself.
//
// The rows are [rows, groups, width], dense; a segment covers columns [begin, begin + width) of
// every (row, group) and has weights [groups, width]. Columns in no segment are left alone.
// Statistics are in acc_t<T>. Source: Zhang and Sennrich 2019. T is double or float on the CPU,
// float, f16 or bf16 on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct RmsNormShape {
  std::int64_t rows;
  int groups, width;
  int segments;  // 1 to 3
  int begin[3];  // columns
  int segment_width[3];
  double eps;
};

template <class T>
struct RmsNormForward {
  RmsNormShape shape;
  const T* x;
  const acc_t<T>* weight[3];  // [groups, segment_width]
  T* y;
};

template <class T>
struct RmsNormBackward {
  RmsNormShape shape;
  const T* x;
  const acc_t<T>* weight[3];
  const T* dy;
  T* dx;                 // overwritten; may be dy
  acc_t<T>* dweight[3];  // overwritten
  void* workspace;       // rmsnorm_backward_workspace<T>(shape) bytes
};

template <class T>
std::size_t rmsnorm_backward_workspace(const RmsNormShape&);

template <class T>
void rmsnorm_forward(CpuQueue&, const RmsNormForward<T>&);
template <class T>
void rmsnorm_forward(CudaQueue&, const RmsNormForward<T>&);
template <class T>
void rmsnorm_backward(CpuQueue&, const RmsNormBackward<T>&);
template <class T>
void rmsnorm_backward(CudaQueue&, const RmsNormBackward<T>&);

}  // namespace fm
