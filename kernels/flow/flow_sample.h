// One element of a flow-matching batch, for both backends. In float every operation is exact (see
// exact_math.h), so CPU and CUDA make the same batch to the last bit; in double the float draws are
// widened and the rest follows the formula.
#pragma once

#include "kernels/base/rng.h"
#include "kernels/flow/flow.h"

namespace fm {

// Which image of the data set comes at place b of the batch of a step.
FM_HOST_DEVICE std::int64_t flow_image(std::int64_t images, int batch, std::uint64_t seed,
                                       std::uint64_t step, int b) {
  const auto per_epoch = static_cast<std::uint64_t>(images / batch);
  const std::uint64_t epoch = step / per_epoch, cursor = step % per_epoch;
  const Permutation order(static_cast<std::uint64_t>(images), seed, epoch);
  return static_cast<std::int64_t>(
      order(cursor * static_cast<std::uint64_t>(batch) + static_cast<std::uint64_t>(b)));
}

FM_HOST_DEVICE RandomKey flow_key(std::uint64_t seed, std::uint32_t stream, std::uint64_t step,
                                  int b) {
  return {seed, stream, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(b)};
}

// In (0, 1), both ends excluded.
FM_HOST_DEVICE float flow_time(TimeSampling sampling, std::uint64_t seed, std::uint64_t step,
                               int b) {
  const Random4 words = random4(flow_key(seed, stream::time, step, b), 0);
  if (sampling == TimeSampling::uniform) return uniform_open(words.x0);
  return exact::sigmoid(normal2(words.x0, words.x1).z0);
}

// The image's label, or the null label `classes` with probability label_drop.
FM_HOST_DEVICE std::int32_t flow_label(std::uint8_t label, int classes, float label_drop,
                                       std::uint64_t seed, std::uint64_t step, int b) {
  const Random4 words = random4(flow_key(seed, stream::label_drop, step, b), 0);
  return uniform(words.x0) < label_drop ? classes : label;
}

// A pixel in [-1, 1]. The second argument chooses the type.
FM_HOST_DEVICE float flow_pixel(std::uint8_t pixel, float) {
  return exact::add(exact::div(static_cast<float>(pixel), 127.5f), -1.0f);
}
inline double flow_pixel(std::uint8_t pixel, double) {
  return pixel / 127.5 - 1;
}

template <class R>
struct FlowPoint {
  R x_t, target;
};

FM_HOST_DEVICE FlowPoint<float> flow_point(float x0, float x1, float t) {
  return {exact::fma(t, x1, exact::mul(exact::add(1.0f, -t), x0)), exact::add(x1, -x0)};
}
inline FlowPoint<double> flow_point(double x0, double x1, double t) {
  return {(1 - t) * x0 + t * x1, x1 - x0};
}

constexpr int kLossPartials = 512;  // the loss is summed in at most so many pieces

}  // namespace fm
