#include "models/trainer.h"

#include "engine/ops/flow.h"
#include "engine/profile.h"
#include "engine/tape.h"
#include "kernels/base/cuda_graph.h"

namespace fm {
namespace {

constexpr std::size_t kStepTimesKept = 101;  // one is the running one

struct StepParts {
  const TrainerSettings& settings;
  FlowModel& model;
  Optimizer& optimizer;
  std::int64_t images;
  const std::uint8_t* pixels;
  const std::uint8_t* labels;
};

// Everything a step does, in order. The same calls plan, run and are captured.
void train_step(Context& context, const StepParts& parts) {
  const ModelConfig& config = parts.model.config();
  const int batch = parts.settings.batch;
  context.arena.reset();
  Tape tape(context);
  context.tape = &tape;
  const Shape shape{batch, config.channels, config.image, config.image};
  const Tensor x_t = context.make(shape, context.acc()),
               target = context.make(shape, context.acc());
  const Tensor t = context.make({batch}, context.acc());
  const Tensor labels = config.classes ? context.make({batch}, DType::i32) : Tensor{};
  {
    const ProfileRange range("data");
    context.run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      flow_batch(queue, FlowBatch<R>{.batch = batch,
                                     .images = parts.images,
                                     .pixels = shape.count() / batch,
                                     .data = parts.pixels,
                                     .labels = labels ? parts.labels : nullptr,
                                     .state = parts.optimizer.device_state(),
                                     .seed = parts.settings.seed,
                                     .time_sampling = parts.settings.time_sampling,
                                     .classes = config.classes,
                                     .label_drop = parts.settings.label_drop,
                                     .x_t = x_t.as<R>(),
                                     .target = target.as<R>(),
                                     .t = t.as<R>(),
                                     .batch_labels = labels ? labels.as<std::int32_t>() : nullptr});
    });
  }
  const Tensor v = parts.model.velocity(context, x_t, t, labels);
  const Tensor loss = flow_loss(context, v, target, parts.optimizer.device_state());
  {
    const ProfileRange range("backward");
    tape.backward();
  }
  parts.optimizer.step(context, parts.model.params(), loss);
  context.tape = nullptr;
}

ParamStore::Use use_of(const TrainerSettings& settings) {
  return settings.optimizer.ema_decay > 0 ? ParamStore::Use::training_with_ema
                                          : ParamStore::Use::training;
}

const DataSet& checked(const DataSet& data, const ModelConfig& config,
                       const TrainerSettings& settings) {
  FM_CHECK(settings.batch > 0, "[train] batch must be positive, got ", settings.batch);
  FM_CHECK(data.count >= settings.batch, "[train] the data set must hold a batch, got ", data.count,
           " images for batch ", settings.batch);
  FM_CHECK(data.size == config.image && data.channels == config.channels,
           "[train] the model takes ", config.channels, " x ", config.image, " x ", config.image,
           " images, ", data.name, " has ", data.channels, " x ", data.size, " x ", data.size);
  if (config.classes)
    for (const std::uint8_t label : data.labels)
      FM_CHECK(label < config.classes, "[train] classes must be more than the largest label, got ",
               config.classes, " and label ", int{label});
  return data;
}

}  // namespace

Trainer::Trainer(const Queue& queue, const ModelConfig& config, const TrainerSettings& settings,
                 const DataSet& data)
    : queue_(queue),
      settings_(settings),
      model_(config),
      images_(checked(data, config, settings).count),
      data_(queue, data),
      stopwatch_(queue, kStepTimesKept) {
  settings_.optimizer.steps_per_epoch = images_ / settings_.batch;
  Context plan(queue_, settings_.compute);
  plan.narrow_stream = settings_.narrow_stream;
  model_.materialise(plan, use_of(settings_));
  model_.params().initialise(settings_.seed);
  optimizer_ = std::make_unique<Optimizer>(plan, settings_.optimizer);
  enqueue(plan);
  context_ = std::make_unique<Context>(queue_, settings_.compute, plan.arena.peak());
  context_->narrow_stream = settings_.narrow_stream;
}

Trainer::~Trainer() = default;

void Trainer::enqueue(Context& context) {
  const ProfileRange range(context.planning() ? "plan" : "step");
  train_step(context, {settings_, model_, *optimizer_, images_, data_.pixels(), data_.labels()});
}

void Trainer::step() {
#if FM_CUDA
  if (auto* cuda = std::get_if<CudaQueue>(&queue_); cuda && settings_.graph && warm_) {
    if (!graph_) graph_ = std::make_unique<CudaGraph>(*cuda, [this] { enqueue(*context_); });
    graph_->launch(*cuda);
  } else {
    enqueue(*context_);
  }
#else
  enqueue(*context_);
#endif
  warm_ = true;
  ++steps_;
  stopwatch_.mark(queue_);
}

void Trainer::resume_at(const StepState& state) {
  optimizer_->write_state(state);
  model_.params().refresh_compute();
  steps_ = state.step;
}

std::size_t training_memory(const Queue& queue, const ModelConfig& config,
                            const TrainerSettings& settings, std::int64_t data_bytes) {
  FlowModel model(config);
  Context plan(queue, settings.compute);
  plan.narrow_stream = settings.narrow_stream;
  model.materialise(plan, use_of(settings));
  Optimizer optimizer(plan, settings.optimizer);
  train_step(plan, {settings, model, optimizer, settings.batch, nullptr, nullptr});
  return model.params().bytes() + optimizer.bytes() + plan.arena.peak() +
         static_cast<std::size_t>(data_bytes);
}

}  // namespace fm
