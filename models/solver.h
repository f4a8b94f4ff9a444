// Sampling: dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data) by fixed steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/flow_model.h"

namespace fm {

enum class Solver : std::uint8_t { euler, midpoint, heun, rk4 };

// Throws Fault::usage for another name.
Solver solver_named(const std::string& name);
const char* name_of(Solver solver);
int evaluations_per_step(Solver solver);

struct SampleSettings {
  int steps = 10;
  Solver solver = Solver::euler;
  float cfg_scale = 1;  // guidance: v_null + scale (v_label - v_null); 1: none
  bool operator==(const SampleSettings&) const = default;
};

// Integrates x [B, C, H, W] (acc type) in place. labels [B] int32 for a class-conditional model.
// `after_step`, if any, is called with the number of steps done; it may throw to stop.
void integrate(Context& context, const FlowModel& model, const Tensor& x, const Tensor& labels,
               const SampleSettings& settings, const std::function<void(int)>& after_step = {});

struct SampleRequest {
  std::int64_t count = 64;
  SampleSettings settings;
  std::uint64_t seed = 0;                     // noise of image i is a function of (seed, i)
  const std::vector<float>* noise = nullptr;  // [count, C, H, W] instead
  std::vector<std::int32_t> labels;  // [count]; empty: the null label, where the model has classes
  int batch = 256;                   // images at a time
  // Called after each step of each batch with the images so far: first image, steps done, states
  // [images, C, H, W] when `wants_states`, else empty. Step 0 is the noise. May throw to stop.
  bool wants_states = false;
  std::function<void(std::int64_t first, std::int64_t images, int step,
                     const std::vector<float>& states)>
      on_step;
};

// Draws again and again. Memory and, on CUDA, the captured steps of a batch are kept as long as
// requests ask for the same settings and batches of the same size: from its second batch on,
// several steps are one launch, or each is where its images are asked for.
class Sampler {
 public:
  // The model must outlive it; its weights may change between requests.
  Sampler(const Queue& queue, DType compute, const FlowModel& model);
  ~Sampler();

  // [count, C, H, W], not clamped.
  std::vector<float> operator()(const SampleRequest& request);

 private:
  class Batch;

  Batch& batch_for(const SampleRequest& request, std::int64_t images);

  Queue queue_;
  DType compute_;
  const FlowModel& model_;
  std::unique_ptr<Batch> batch_;
};

// One request's samples.
std::vector<float> sample(const Queue& queue, DType compute, const FlowModel& model,
                          const SampleRequest& request);

}  // namespace fm
