// The three matrix products of a linear layer y = x W^T + b, plain or grouped. The only folder that
// knows cuBLASLt and CBLAS.
//
// Shapes, a group: x [rows, in], w [out, in], bias [out], y [rows, out], all row-major; consecutive
// rows of x and y are x_stride and y_stride elements apart (0: dense), so that operands may be
// columns of a wider matrix. Groups are independent products at fixed distances (w and its gradient
// dense, [groups, out, in]; bias [groups, out]). T is double or float on the CPU, float, f16 or
// bf16 on CUDA; sums are in acc_t<T>.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct LinearShape {
  std::int64_t rows;
  int in, out;
  int groups = 1;
  std::int64_t x_stride = 0, y_stride = 0;  // elements between rows; 0: groups * in, groups * out
  std::int64_t x_group = 0,
               y_group = 0;  // elements between groups; 0: in, out (side by side in a row)
};

// y = x w^T + bias. Y is T, or acc_t<T> where the result is kept in full precision. bias null:
// none.
template <class T, class Y>
struct LinearForward {
  LinearShape shape;
  const T* x;
  const T* w;
  const T* bias;
  Y* y;
};

// dx = dy w
template <class T>
struct LinearBackwardInput {
  LinearShape shape;
  const T* dy;
  const T* w;
  T* dx;
  bool accumulate = false;  // true: dx += dy w
};

// dw = dy^T x, dbias = column sums of dy (null: none). Both in acc_t<T>, overwritten.
template <class T>
struct LinearBackwardWeight {
  LinearShape shape;
  const T* dy;
  const T* x;
  acc_t<T>* dw;
  acc_t<T>* dbias;
  void* workspace;  // linear_backward_weight_workspace(shape) bytes; undefined afterwards
};

std::size_t linear_backward_weight_workspace(const LinearShape&);

template <class T, class Y>
void linear_forward(CpuQueue&, const LinearForward<T, Y>&);
template <class T, class Y>
void linear_forward(CudaQueue&, const LinearForward<T, Y>&);
template <class T>
void linear_backward_input(CpuQueue&, const LinearBackwardInput<T>&);
template <class T>
void linear_backward_input(CudaQueue&, const LinearBackwardInput<T>&);
template <class T>
void linear_backward_weight(CpuQueue&, const LinearBackwardWeight<T>&);
template <class T>
void linear_backward_weight(CudaQueue&, const LinearBackwardWeight<T>&);

}  // namespace fm
