// Training: one step is data, forward, backward, clipping and AdamW, enqueued without a host
// decision; on CUDA it is captured once and replayed as one graph, with the same bits as without.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/optim/optimizer.h"
#include "engine/stopwatch.h"
#include "kernels/flow/flow.h"
#include "models/dataset.h"
#include "models/flow_model.h"

namespace fm {

class CudaGraph;

struct TrainerSettings {
  int batch = 256;
  DType compute = DType::f32;
  bool narrow_stream = false;  // the residual stream in the compute type rather than in fp32
  std::uint64_t seed = 0;
  OptimizerSettings optimizer;  // steps_per_epoch and dynamic_scale are set by the trainer
  TimeSampling time_sampling = TimeSampling::uniform;
  float label_drop = 0.1f;  // where the model has classes
  bool graph = true;        // on CUDA
};

class Trainer {
 public:
  // Plans a step, takes its memory, initialises the weights from the seed. Throws Fault::usage
  // where the data does not fit the model or is smaller than a batch, Fault::device where memory is
  // short.
  Trainer(const Queue& queue, const ModelConfig& config, const TrainerSettings& settings,
          const DataSet& data);
  ~Trainer();

  // Enqueues one step. On CUDA it returns before the step is done.
  void step();
  std::uint64_t steps() const { return steps_; }
  std::int64_t steps_per_epoch() const { return settings_.optimizer.steps_per_epoch; }

  // Records of the steps [first, last); waits for them.
  std::vector<StepRecord> records(std::uint64_t first, std::uint64_t last) {
    return optimizer_->records(first, last);
  }
  // Times of the last steps (up to 100), oldest first.
  std::vector<double> step_times_ms() const { return stopwatch_.intervals_ms(); }
  // Whether the steps from here on replay the graph, on CUDA; the bits are the same.
  void set_graph(bool on) { settings_.graph = on; }
  void pause() {
    stopwatch_.restart();
  }  // what happens until the next step is not part of a step's time

  FlowModel& model() { return model_; }
  Optimizer& optimizer() { return *optimizer_; }
  const TrainerSettings& settings() const { return settings_; }
  const Queue& queue() const { return queue_; }
  std::size_t step_memory() const { return context_->arena.capacity(); }

  // For a resume, after the parameter buffers were written: continues as if `state.step` steps had
  // been run.
  void resume_at(const StepState& state);

 private:
  void enqueue(Context& context);

  Queue queue_;
  TrainerSettings settings_;
  FlowModel model_;
  std::int64_t images_;
  DeviceData data_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Context> context_;
  Stopwatch stopwatch_;
  std::unique_ptr<CudaGraph> graph_;
  std::uint64_t steps_ = 0;
  bool warm_ =
      false;  // one step has run since the start: handles, algorithms and modules are there
};

// Bytes that training takes on the device in all, found by planning a step; nothing large is
// allocated.
std::size_t training_memory(const Queue& queue, const ModelConfig& config,
                            const TrainerSettings& settings, std::int64_t data_bytes);

}  // namespace fm
