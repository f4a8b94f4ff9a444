// The end of a training step on flat parameter buffers: gradient norm, overflow check, clipping,
// loss scale, AdamW, EMA.
//
// Two calls: optimizer_prepare decides (norm, skip or not, clip factor, scale, log record) and
// advances StepState; adamw_update applies. No decision leaves the device. Order as in PyTorch:
// unscale, clip, step, update the scale. Source: Loshchilov and Hutter 2019, algorithm 2;
// Micikevicius et al. 2018 for the dynamic loss scale. T is the compute type: double or float on
// the CPU, float, f16 or bf16 on CUDA; master weights are acc_t<T>. Buffers are 16-byte aligned
// and hold a multiple of kDecayChunk elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/base/step_state.h"

namespace fm {

constexpr int kDecayChunk =
    64;  // elements that share one weight-decay flag; parameters start at multiples of it

// The dynamic loss scale stays within these. A run whose scale falls below 2^-10 has failed: its
// host stops it, and until then nothing divides by zero.
constexpr float kLowestLossScale = 0x1p-24f, kHighestLossScale = 0x1p24f;

struct OptimizerSettings {
  float lr = 1e-4f;
  std::int64_t warmup_steps =
      0;  // lr rises linearly over the first steps; 0: constant from the start
  std::int64_t cooldown_steps =
      0;  // lr falls linearly over the last of total_steps, towards 0 after them; 0: it does not
  std::int64_t total_steps = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  float weight_decay = 0.01f;
  float clip = 1.0f;    // global norm; 0: no clipping
  float ema_decay = 0;  // 0: no EMA; otherwise min(decay, (1 + n) / (10 + n)) after n updates
  bool dynamic_scale = false;  // halve on overflow, double after `scale_growth_every` good steps
  int scale_growth_every = 2000;
  std::int64_t steps_per_epoch = 1;  // epoch_loss_sum starts anew after so many steps
};

// The norm is not finite where a gradient is not, or where its square is not (above 1.8e19 in
// float): state->overflow becomes 1 and the update is skipped, with or without a dynamic scale. A
// is float or double: the type of gradients.
template <class A>
struct OptimizerPrepare {
  std::int64_t count;
  const A* grad;  // [count], scaled by the loss scale; padding is zero
  const A* loss;  // [1], unscaled
  OptimizerSettings settings;
  StepState* state;  // read and advanced
  StepRecord* ring;  // [ring_size]; the record of step s goes to s % ring_size
  int ring_size;
  A* grad_norm;     // [1], unscaled, before clipping; null: not wanted
  void* workspace;  // optimizer_prepare_workspace(count) bytes
};

std::size_t optimizer_prepare_workspace(std::int64_t count);

// p -= lr (m_hat / (sqrt(v_hat) + eps) + wd p), unless state->overflow. Reads what
// optimizer_prepare left in state.
template <class T>
struct AdamWUpdate {
  std::int64_t count;    // a multiple of kDecayChunk
  const acc_t<T>* grad;  // scaled; multiplied by state->grad_factor here
  acc_t<T>* master;
  acc_t<T>* m;
  acc_t<T>* v;
  acc_t<T>* ema;               // null: none
  T* compute;                  // copy in the compute type; null: computes from master
  const std::uint8_t* decays;  // [count / kDecayChunk]: 1 where weight decay applies
  OptimizerSettings settings;
  const StepState* state;
};

template <class A>
void optimizer_prepare(CpuQueue&, const OptimizerPrepare<A>&);
template <class A>
void optimizer_prepare(CudaQueue&, const OptimizerPrepare<A>&);
template <class T>
void adamw_update(CpuQueue&, const AdamWUpdate<T>&);
template <class T>
void adamw_update(CudaQueue&, const AdamWUpdate<T>&);

}  // namespace fm
