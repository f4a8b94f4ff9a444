// Conditional flow matching on the straight path: x_t = (1 - t) x0 + t x1, target x1 - x0, mean
// squared error.
//
// x0 is noise (t = 0), x1 data (t = 1). R is double or float on the CPU, float on CUDA. Everything
// here is per step and reads what changes from StepState, so a captured graph can replay it. Float
// buffers are 16-byte aligned, data 4-byte aligned. FlowBatch and FlowInterpolate have the same
// bits on CPU and CUDA. Source: Lipman et al. 2023, section 4.1; Liu et al. 2023 (rectified flow).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/base/step_state.h"

namespace fm {

enum class TimeSampling : std::uint8_t {
  uniform,
  logit_normal
};  // logit_normal: sigmoid of a standard normal

// The batch of step state->step: a fresh permutation of the data set an epoch (the remainder after
// the last full batch is dropped), pixels to [-1, 1], noise, times, x_t, target and labels. Image b
// of step s is a function of (seed, s, b).
template <class R>
struct FlowBatch {
  int batch;
  std::int64_t images;         // in the data set; at least `batch`
  std::int64_t pixels;         // C H W
  const std::uint8_t* data;    // [images, pixels]
  const std::uint8_t* labels;  // [images]; null: none, and no batch_labels
  const StepState* state;
  std::uint64_t seed;
  TimeSampling time_sampling;
  int classes;                 // the null label's number; used with labels only
  float label_drop;            // probability of the null label
  R* x_t;                      // [B, pixels]
  R* target;                   // [B, pixels]
  R* t;                        // [B]
  std::int32_t* batch_labels;  // [B]; null: none
};

template <class R>
struct FlowInterpolate {
  int batch;
  std::int64_t pixels;
  const R* x0;
  const R* x1;
  const R* t;  // [B]
  R* x_t;
  R* target;
};

// loss = mean((v - target)^2)
template <class R>
struct FlowLossForward {
  std::int64_t count;
  const R* v;
  const R* target;
  R* loss;          // [1], overwritten
  void* workspace;  // flow_loss_workspace(count) bytes
};

// dv = 2 (v - target) / count * loss scale
template <class R>
struct FlowLossBackward {
  std::int64_t count;
  const R* v;
  const R* target;
  const StepState* state;  // for the loss scale; null: 1
  R* dv;
};

std::size_t flow_loss_workspace(std::int64_t count);

template <class R>
void flow_batch(CpuQueue&, const FlowBatch<R>&);
template <class R>
void flow_batch(CudaQueue&, const FlowBatch<R>&);
template <class R>
void flow_interpolate(CpuQueue&, const FlowInterpolate<R>&);
template <class R>
void flow_interpolate(CudaQueue&, const FlowInterpolate<R>&);
template <class R>
void flow_loss_forward(CpuQueue&, const FlowLossForward<R>&);
template <class R>
void flow_loss_forward(CudaQueue&, const FlowLossForward<R>&);
template <class R>
void flow_loss_backward(CpuQueue&, const FlowLossBackward<R>&);
template <class R>
void flow_loss_backward(CudaQueue&, const FlowLossBackward<R>&);

}  // namespace fm
