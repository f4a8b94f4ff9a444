// The one product behind the three of a linear layer, on CUDA: d(i, j) = sum over k of a(i, k)
// b(j, k), for a number of groups, d row-major. Internal to kernels/matmul, and to its test.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/queue.h"
#include "kernels/matmul/matmul.h"

namespace fm {

// Element (i, k) of a group is data[i * ld + k] where k_inner, data[k * ld + i] otherwise.
template <class T>
struct Operand {
  const T* data;
  std::int64_t ld, group_stride;
  bool k_inner;
};

template <class T, class D>
struct Product {
  std::int64_t m, n, k;
  int groups;
  Operand<T> a, b;
  D* d;  // element (i, j) of a group is d[i * ldd + j]
  std::int64_t ldd, d_group_stride;
  bool accumulate = false;  // true: d += the sum
};

// By cuBLASLt, or by multiply_simple where it has no algorithm.
template <class T, class D>
void multiply(CudaQueue&, const Product<T, D>&);

// d(i, j) = sum + bias[j], by cuBLASLt in one pass; false where it has no algorithm (nothing was
// done then). One group, d overwritten.
template <class T>
bool multiply_with_bias(CudaQueue&, const Product<T, T>&, const T* bias);

// d(i, j) = sum + bias[j] (null: none) by our own kernel for Hopper, which keeps b near; false
// where device, shape or an address is not for it (nothing was done then). a is k_inner.
template <class T>
bool multiply_many_rows(CudaQueue&, const Product<T, T>&, const T* bias = nullptr);

// The whole layer by our own kernel for few rows of 16-bit elements; false where the shape is not
// for it (nothing was done then).
template <class T, class Y>
bool linear_few_rows(CudaQueue&, const LinearForward<T, Y>&, const LinearShape& checked_shape);

// Our own kernel: every shape, stride and alignment, at a fraction of the speed.
template <class T, class D>
void multiply_simple(CudaQueue&, const Product<T, D>&);

// y = bias in every row.
template <class T, class Y>
void broadcast_bias(CudaQueue&, const LinearShape& checked_shape, const T* bias, Y* y);

// dbias [groups, out] = column sums of dy; parts: cuda_column_split(shape).count * groups * out
// floats.
template <class T>
void column_sums(CudaQueue&, const LinearShape& checked_shape, const T* dy, float* dbias,
                 float* parts);

// The weight gradient and its bias gradient by our own kernels, which read dy and x about once;
// false where the shape is cuBLASLt's (nothing was done then): rows that are not aligned, or so
// many outputs that the tensor cores bind.
template <class T>
bool weight_gradient(CudaQueue&, const LinearBackwardWeight<T>&, const LinearShape& checked_shape);

// The same on Hopper; false where device, shape or an address is not for it.
template <class T>
bool weight_gradient_hopper(CudaQueue&, const LinearBackwardWeight<T>&,
                            const LinearShape& checked_shape);

// Shapes a queue has met, and those of them that cuBLASLt has no algorithm for.
struct MatmulPlanCount {
  std::size_t all, without_algorithm;
};
MatmulPlanCount matmul_plan_count(const CudaQueue&);

}  // namespace fm
