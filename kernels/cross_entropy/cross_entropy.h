// Softmax cross-entropy of logits [rows, classes] against integer labels, averaged over the rows.
//
// R is double or float on the CPU, float on CUDA; the sum over rows is kept in double. A row whose
// label lies outside [0, classes) makes the loss and its own gradient NaN: labels are device
// memory, so the host cannot refuse them, and nothing is read out of bounds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/base/step_state.h"

namespace fm {

// loss = mean over rows of log(sum_j exp(logits_j)) - logits_label
template <class R>
struct CrossEntropyForward {
  std::int64_t rows;
  int classes;
  const R* logits;             // [rows, classes]
  const std::int32_t* labels;  // [rows]
  R* loss;                     // [1], overwritten
  void* workspace;             // cross_entropy_workspace(rows) bytes
};

// dlogits = (softmax(logits) - onehot(label)) / rows * loss scale, overwritten
template <class R>
struct CrossEntropyBackward {
  std::int64_t rows;
  int classes;
  const R* logits;
  const std::int32_t* labels;
  const StepState* state;  // for the loss scale; null: 1
  R* dlogits;              // [rows, classes]; may be logits itself
};

std::size_t cross_entropy_workspace(std::int64_t rows);

template <class R>
void cross_entropy_forward(CpuQueue&, const CrossEntropyForward<R>&);
template <class R>
void cross_entropy_forward(CudaQueue&, const CrossEntropyForward<R>&);
template <class R>
void cross_entropy_backward(CpuQueue&, const CrossEntropyBackward<R>&);
template <class R>
void cross_entropy_backward(CudaQueue&, const CrossEntropyBackward<R>&);

}  // namespace fm
