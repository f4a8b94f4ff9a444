// What changes from one training step to the next, in device memory: a captured step reads and
// advances it, so that replays need nothing from the host.
#pragma once

#include <cstdint>

namespace fm {

struct StepState {
  std::uint64_t step = 0;        // training steps finished, skipped ones included
  std::uint64_t adam_steps = 0;  // optimizer updates made; skipped steps do not count
  double epoch_loss_sum = 0;     // over the steps of the current epoch
  float loss_scale = 1;          // what the loss gradient is multiplied by; 1 where scaling is off
  std::int32_t good_steps = 0;   // steps since the loss scale last changed
  std::int32_t skipped_in_row = 0;  // steps skipped one after another up to now
  std::int32_t overflow = 0;  // 1: a gradient of this step is not finite, the update is skipped
  float grad_factor = 0;  // clip coefficient / loss scale: what the update multiplies gradients by
  float lr = 0;           // this step's, warm-up included
  float bias_correction1 = 1;  // 1 - beta1^adam_steps
  float bias_correction2 = 1;  // 1 - beta2^adam_steps
  float ema_decay = 0;         // this step's, warm-up included
};

// One step as the log wants it; a ring of them is written on the device and read by the host now
// and then.
struct StepRecord {
  std::uint64_t step;  // 0 for the first step
  float loss;
  float grad_norm;   // unscaled, before clipping
  float loss_scale;  // the one this step used
  float lr;
  std::int32_t overflow;
  std::int32_t skipped_in_row;
  double epoch_loss_sum;  // this step included
};

}  // namespace fm
