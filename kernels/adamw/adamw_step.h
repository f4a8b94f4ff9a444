// The decisions at the end of a step, made by one thread on either backend.
#pragma once

#include <cfloat>
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/base/check.h"
#include "kernels/base/exact_math.h"

namespace fm {

constexpr int kNormPartials = 512;  // squares are summed in at most so many pieces

// From the sum of the scaled gradients' squares and the step's loss: advances `s`, writes the
// step's record and returns the unscaled norm. In double, since it happens once.
FM_HOST_DEVICE double finish_step(StepState& s, const OptimizerSettings& o, double square_sum,
                                  double loss, StepRecord* ring, int ring_size) {
  const double scale = s.loss_scale, norm = std::sqrt(square_sum) / scale;
  const bool overflow = !(norm <= FLT_MAX);  // NaN, too
  s.overflow = overflow ? 1 : 0;
  s.skipped_in_row = overflow ? s.skipped_in_row + 1 : 0;

  const double clip = o.clip > 0 ? std::fmin(1.0, o.clip / (norm + 1e-6)) : 1.0;
  s.grad_factor = overflow ? 0.0f : static_cast<float>(clip / scale);

  const double warmth =
      o.warmup_steps > 0
          ? std::fmin(1.0, static_cast<double>(s.step + 1) / static_cast<double>(o.warmup_steps))
          : 1.0;
  const double left = static_cast<double>(o.total_steps) - static_cast<double>(s.step);
  const double rest =
      o.cooldown_steps > 0
          ? std::fmax(0.0, std::fmin(1.0, left / static_cast<double>(o.cooldown_steps)))
          : 1.0;
  s.lr = static_cast<float>(o.lr * warmth * rest);

  if (!overflow) ++s.adam_steps;
  const double n = static_cast<double>(s.adam_steps);
  s.bias_correction1 = static_cast<float>(1.0 - std::pow(o.beta1, n));
  s.bias_correction2 = static_cast<float>(1.0 - std::pow(o.beta2, n));
  s.ema_decay =
      static_cast<float>(std::fmin(static_cast<double>(o.ema_decay), (1.0 + n) / (10.0 + n)));

  if (s.step % static_cast<std::uint64_t>(o.steps_per_epoch) == 0) s.epoch_loss_sum = 0;
  s.epoch_loss_sum += loss;

  ring[s.step % static_cast<std::uint64_t>(ring_size)] = {
      s.step,     static_cast<float>(loss), static_cast<float>(norm), s.loss_scale, s.lr,
      s.overflow, s.skipped_in_row,         s.epoch_loss_sum};

  if (o.dynamic_scale) {
    s.good_steps = overflow ? 0 : s.good_steps + 1;
    if (overflow) {
      s.loss_scale = std::fmax(s.loss_scale * 0.5f, kLowestLossScale);
    } else if (s.good_steps >= o.scale_growth_every) {
      s.loss_scale = std::fmin(s.loss_scale * 2.0f, kHighestLossScale);
      s.good_steps = 0;
    }
  }
  ++s.step;
  return norm;
}

// AdamW's constants in the type of the arithmetic.
template <class A>
struct AdamWConstants {
  A beta1, rest1, beta2, rest2, eps, weight_decay;

  explicit AdamWConstants(const OptimizerSettings& o)
      : beta1(static_cast<A>(o.beta1)),
        rest1(static_cast<A>(1 - o.beta1)),
        beta2(static_cast<A>(o.beta2)),
        rest2(static_cast<A>(1 - o.beta2)),
        eps(static_cast<A>(o.eps)),
        weight_decay(static_cast<A>(o.weight_decay)) {}
};

inline void check_adamw_count(std::int64_t count) {
  FM_CHECK(count > 0 && count % kDecayChunk == 0, "[adamw] count must be a positive multiple of ",
           kDecayChunk, ", got ", count);
}

template <class A>
void check_optimizer_prepare(const OptimizerPrepare<A>& p) {
  check_adamw_count(p.count);
  FM_CHECK(p.ring && p.ring_size > 0, "[adamw] the log ring must hold at least one record, got ",
           p.ring_size);
  FM_CHECK(p.settings.steps_per_epoch > 0, "[adamw] steps_per_epoch must be positive, got ",
           p.settings.steps_per_epoch);
  FM_CHECK(!p.settings.dynamic_scale || p.settings.scale_growth_every > 0,
           "[adamw] scale_growth_every must be positive, got ", p.settings.scale_growth_every);
}

}  // namespace fm
