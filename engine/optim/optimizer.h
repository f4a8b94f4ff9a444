// The end of a training step: clipping, loss scaling, AdamW and EMA on a parameter store, all on
// the device.
#pragma once

#include <vector>

#include "engine/params.h"
#include "kernels/adamw/adamw.h"

namespace fm {

constexpr float kInitialLossScale = 65536;         // fp16; other types are not scaled
constexpr float kSmallestLossScale = 1.0f / 1024;  // below it training is considered lost
constexpr int kRecordRing = 4096;                  // steps whose records are kept on the device

class Optimizer {
 public:
  // Dynamic loss scaling is on where the context computes in fp16.
  Optimizer(Context& context, const OptimizerSettings& settings);

  // Reads the gradients and the loss [1] of this step, decides, updates, advances the state.
  // Enqueued, not waited for.
  void step(Context& context, ParamStore& params, const Tensor& loss);

  const StepState* device_state() const { return state_.as<StepState>(); }
  const OptimizerSettings& settings() const { return settings_; }
  StepState read_state();
  void write_state(const StepState& state);
  // Records of the steps [first, last); at most kRecordRing of the newest. Waits for them.
  std::vector<StepRecord> records(std::uint64_t first, std::uint64_t last);
  std::size_t bytes() const { return state_.bytes() + ring_.bytes(); }

 private:
  OptimizerSettings settings_;
  Buffer state_, ring_;
};

}  // namespace fm
