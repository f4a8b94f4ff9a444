// y = x W^T + b over the last dimension, plain and grouped.
#pragma once

#include "engine/context.h"
#include "engine/params.h"
#include "kernels/matmul/matmul.h"

namespace fm {

// x [..., in], w [out, in], b [out] or null -> [..., out] in the compute type, or in acc type where
// `full_precision`.
Tensor linear(Context&, const Tensor& x, const Parameter& w, const Parameter* b,
              bool full_precision = false);

// Records the gradient of y = x w^T + b, which another operation has made.
void record_linear(Context&, const Tensor& x, const Parameter& w, const Parameter* b,
                   const Tensor& y);

// The gradients of a product's weights and bias, put off (Tape::later).
struct WeightGradient {
  LinearShape shape;
  void* dy;            // in the compute type
  Tensor x;            // the block that holds the operand
  std::int64_t begin;  // its first column in x
  const Parameter* w;
  const Parameter* b;  // null: none
};
void weight_gradient_later(Context&, const WeightGradient&);

// Groups side by side: columns [begin, begin + in) of each group of x [rows, groups, width], w
// [groups, out, in]
// -> [rows, groups, out]. Where the columns are not the whole group, they are x's gradient's part
// (Tape::parts).
Tensor grouped_linear(Context&, const Tensor& x, std::int64_t begin, const Parameter& w);

}  // namespace fm
