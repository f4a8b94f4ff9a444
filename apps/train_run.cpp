#include "apps/train_run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <optional>

#include "apps/data_source.h"
#include "apps/divergence.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/statistics.h"
#include "apps/train_checkpoint.h"
#include "engine/io/image_grid.h"
#include "models/solver.h"

namespace fm {
namespace {

constexpr std::uint64_t kSampleSeed = 0;  // every grid of every run starts from the same noise

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

RunFolder::Open how_to_open(const TrainRequest& request) {
  if (request.overwrite) return RunFolder::Open::overwrite;
  return request.resume.empty() ? RunFolder::Open::fresh : RunFolder::Open::resume;
}

class Run {
 public:
  Run(const TrainRequest& request, const Queue& queue, DType compute, const DataSet& data)
      : config_(request.config),
        folder_(request.out),
        data_(data),
        total_(
            static_cast<std::uint64_t>(steps_of(config_.train, data.count / config_.train.batch))),
        trainer_(queue, config_.model,
                 trainer_settings(config_.train, compute, request.graph,
                                  static_cast<std::int64_t>(total_)),
                 data),
        profile_(request.profile),
        graph_(request.graph) {
    FM_CHECK(profile_.start + profile_.count <= total_,
             "[train] profile must lie within the run's ", total_, " steps, got steps ",
             profile_.start, " to ", profile_.start + profile_.count);
  }

  void start(const TrainRequest& request) {
    folder_.open(how_to_open(request));
    if (!request.checkpoint.empty()) {
      resume(request.checkpoint);
    } else if (!request.resume.empty()) {
      folder_.trim(0, 0);  // what a run logged that ended before its first checkpoint
      std::fprintf(stderr, "no checkpoint in %s: starting at step 0\n", folder_.root().c_str());
    }
    folder_.write_json("config.json", config_json(config_));
    folder_.write_json("env.json", environment_json(trainer_.queue()));
    first_ = looked_ = logged_ = trainer_.steps();
    FM_CHECK(profile_.count == 0 || profile_.start >= first_,
             "[train] profile must begin after the resumed step ", first_, ", got ",
             profile_.start);
  }

  int loop() {
    if (first_ >= total_) {
      std::fprintf(stderr, "nothing to do: step %llu of %llu is done\n",
                   static_cast<unsigned long long>(first_),
                   static_cast<unsigned long long>(total_));
      return 0;
    }
    Progress progress("training", total_, first_);
    while (trainer_.steps() < total_ && !caught_signal()) {
      profiled_step();
      after_step(progress);
    }
    window_.reset();
    log(progress);
    summarise(progress.seconds());
    save();  // after the summary: a run whose last checkpoint is there is complete
    const bool done = trainer_.steps() >= total_;
    progress.line(done ? concat("done: ", folder_.root().string(), ", step ", trainer_.steps(),
                                ", ", clock_text(progress.seconds()))
                       : concat("stopped by a signal at step ", trainer_.steps(),
                                ", saved; go on with --out ", folder_.root().string(),
                                " --resume latest"));
    if (!done) return signal_exit_code(caught_signal());
    std::cout << "loss " << fixed(epoch_loss_, 4) << "  half_loss " << fixed(epoch_loss_ / 2, 4)
              << "  " << (folder_.root() / "summary.json").string() << "\n";
    return 0;
  }

 private:
  std::uint64_t steps_per_epoch() const {
    return static_cast<std::uint64_t>(trainer_.steps_per_epoch());
  }

  void resume(const std::filesystem::path& checkpoint) {
    resume_from(SafetensorsFile(checkpoint), trainer_, data_);
    const std::uint64_t step = trainer_.steps();
    std::fprintf(stderr, "resuming from %s at step %llu\n", checkpoint.c_str(),
                 static_cast<unsigned long long>(step));
    folder_.trim(step, step / steps_per_epoch());
    // From here on this checkpoint is the folder's latest, wherever it came from.
    std::error_code ignored;
    if (std::filesystem::equivalent(checkpoint, folder_.checkpoint_path(step), ignored))
      folder_.checkpoint_written(step, 0);
    else save();
  }

  // One step, without the graph where the profiler's window is open: a replay has no host ranges.
  void profiled_step() {
    if (!window_ && profile_.contains(trainer_.steps())) {
      trainer_.set_graph(false);
      window_.emplace(trainer_.queue());
      trainer_.pause();
    }
    trainer_.step();
    if (window_ && !profile_.contains(trainer_.steps())) {
      window_.reset();
      trainer_.set_graph(graph_);
      trainer_.pause();
    }
  }

  void after_step(Progress& progress) {
    const std::uint64_t step = trainer_.steps();
    const bool epoch_end = step % steps_per_epoch() == 0, last = step == total_;
    const auto due = [&](std::int64_t every) {
      return every > 0 ? step % static_cast<std::uint64_t>(every) == 0 : every == 0 && epoch_end;
    };
    const bool save_now = due(config_.train.ckpt_every) && !last;
    const bool draw_now =
        due(config_.train.sample_every) || (last && config_.train.sample_every >= 0);
    if (step - looked_ >= kRecordRing) look();
    // Nothing is saved that was not looked at.
    if (due(config_.train.log_every) || epoch_end || save_now || draw_now) log(progress);
    if (epoch_end) end_epoch(progress);
    if (save_now) save();
    if (draw_now) draw();
    if (save_now || draw_now) trainer_.pause();
    progress.update(step, note_);
  }

  // Checks every step since the last look.
  void look() {
    for (const StepRecord& record : trainer_.records(looked_, trainer_.steps())) {
      const std::string wrong = divergence(record);
      if (wrong.empty()) continue;
      const auto kept = folder_.latest_checkpoint();
      fail(Fault::not_finite, "[train] ", wrong, "; the last good checkpoint is ",
           kept ? kept->string() : "none", "; try a lower --lr, --warmup-steps or --dtype bf16");
    }
    looked_ = trainer_.steps();
  }

  // Writes a row for the newest step.
  void log(Progress& progress) {
    look();
    const std::uint64_t step = trainer_.steps();
    if (logged_ == step) return;
    logged_ = step;
    const StepRecord record = trainer_.records(step - 1, step).back();
    epoch_loss_ = record.epoch_loss_sum / static_cast<double>((step - 1) % steps_per_epoch() + 1);
    step_ms_ = quantile(trainer_.step_times_ms(), 0.5);
    const Json none;  // a time is there from the second step on
    Json row;
    row["step"] = step;
    row["epoch"] = (step - 1) / steps_per_epoch() + 1;
    row["loss"] = record.loss;
    row["half_loss"] = record.loss / 2;
    row["grad_norm"] = std::isfinite(record.grad_norm) ? Json(record.grad_norm) : none;
    row["loss_scale"] = record.loss_scale;
    row["lr"] = record.lr;
    row["step_ms"] = step_ms_ > 0 ? Json(step_ms_) : none;
    row["images_per_s"] = step_ms_ > 0 ? Json(images_per_s()) : none;
    folder_.append_log(row);
    note_ = concat("loss ", fixed(record.loss, 4), "  ", fixed(step_ms_, 2), " ms/step");
    if (!progress.terminal())
      progress.line(
          concat("step ", step, "/", total_, "  ", note_, "  left ", progress.time_left(step)));
  }

  double images_per_s() const { return step_ms_ > 0 ? 1e3 * config_.train.batch / step_ms_ : 0; }

  void end_epoch(Progress& progress) {
    const std::uint64_t step = trainer_.steps(), epoch = step / steps_per_epoch();
    folder_.append_metrics("epoch,step,loss,half_loss,step_ms,images_per_s,seconds",
                           concat(epoch, ',', step, ',', fixed(epoch_loss_, 6), ',',
                                  fixed(epoch_loss_ / 2, 6), ',', fixed(step_ms_, 3), ',',
                                  fixed(images_per_s(), 1), ',', fixed(progress.seconds(), 1)));
    progress.line(concat("epoch ", epoch, "  loss ", fixed(epoch_loss_, 4), " (half ",
                         fixed(epoch_loss_ / 2, 4), ")  ", fixed(step_ms_, 2), " ms/step  ",
                         clock_text(progress.seconds())));
  }

  void save() {
    const std::uint64_t step = trainer_.steps();
    if (saved_ == step) return;
    saved_ = step;
    write_training_checkpoint(folder_.checkpoint_path(step), trainer_, config_);
    folder_.checkpoint_written(step, config_.train.keep_last);
  }

  // A grid from the average of the weights where there is one, on fixed noise, so that grids of a
  // run can be compared.
  void draw() {
    FlowModel model(config_.model);
    Context context(trainer_.queue(), trainer_.settings().compute);
    model.materialise(context, ParamStore::Use::inference);
    ParamStore& trained = trainer_.model().params();
    model.params().write(model.params().master(),
                         trained.read(trained.ema() ? trained.ema() : trained.master()));
    model.params().refresh_compute();
    SampleRequest request;
    request.count = kSampleCount;
    request.seed = kSampleSeed;
    for (int i = 0; i < kSampleCount && config_.model.classes; ++i)
      request.labels.push_back(i % config_.model.classes);
    const std::vector<float> images = sample(trainer_.queue(), context.compute, model, request);
    const int side = config_.model.image;
    write_png(folder_.sample_path(trainer_.steps()),
              image_grid({.count = kSampleCount,
                          .channels = config_.model.channels,
                          .height = side,
                          .width = side,
                          .images = images.data()}),
              {{"seed", concat(kSampleSeed)},
               {"step", concat(trainer_.steps())},
               {"solver", name_of(request.settings.solver)},
               {"steps", concat(request.settings.steps)}});
  }

  void summarise(double wall_s) {
    const std::vector<double> times = trainer_.step_times_ms();
    Queue queue = trainer_.queue();
    Json json;
    json["backbone"] = backbone_name(config_.model.blocks);
    json["params"] = trainer_.model().params().count();
    json["steps"] = trainer_.steps();
    json["resumed_at"] = first_;  // wall_s, step_ms and the peaks are of the steps since
    json["final_epoch_loss"] =
        epoch_loss_;  // the last epoch's mean so far; null where no step was made
    json["half"] = epoch_loss_ / 2;
    json["step_ms"] = {
        {"median", quantile(times, 0.5)}, {"p90", quantile(times, 0.9)}, {"over", times.size()}};
    json["peak_memory_bytes"] = {
        {"allocator", std::visit([](auto& q) { return q.memory().peak(); }, queue)},
        {"driver", std::visit([](auto& q) { return system_memory_in_use(q); }, queue)}};
    json["wall_s"] = wall_s;
    json["seed"] = config_.train.seed;
    json["device"] = device_name(queue);
    json["data"] = data_.name;
    folder_.write_json("summary.json", json);
  }

  RunConfig config_;
  RunFolder folder_;
  const DataSet& data_;
  std::uint64_t total_;  // steps
  Trainer trainer_;
  std::uint64_t first_ = 0, looked_ = 0, logged_ = 0;  // steps
  ProfileSteps profile_;
  bool graph_;
  std::optional<ProfileWindow> window_;
  std::optional<std::uint64_t> saved_;
  double epoch_loss_ = std::numeric_limits<double>::quiet_NaN(), step_ms_ = 0;
  std::string note_;
};

struct Prepared {
  Queue queue;
  DType compute;
  DataSet data;
  TrainRequest request;  // with every "auto" resolved
};

Prepared prepare(TrainRequest request) {
  const Queue queue = make_queue(request.device, request.threads);
  const DType compute = make_dtype(request.config.train.dtype, queue);
  request.config.train.dtype = name_of(compute);
  validate(request.config.train);
  DataConfig& data = request.config.data;
  if (request.download) {
    download_mnist(mnist_cache());
    if (data.source == "auto") data.source = mnist_cache().string();
  }
  CpuQueue host(request.threads);
  DataChoice choice = load_data(data.source, Split::train, host);
  if (!choice.note.empty()) std::fprintf(stderr, "%s\n", choice.note.c_str());
  FM_CHECK(choice.data.count >= request.config.train.batch, "[train] batch must be at most the ",
           choice.data.count, " images of ", choice.data.name, ", got ",
           request.config.train.batch);
  data = {choice.source, choice.data.name, choice.data.fingerprint, choice.data.count};
  request.config.model.image = choice.data.size;
  request.config.model.channels = choice.data.channels;
  validate(request.config.model);
  return {queue, compute, std::move(choice.data), std::move(request)};
}

}  // namespace

int run_training(const TrainRequest& unresolved) {
  RunFolder(unresolved.out).check(how_to_open(unresolved));  // before minutes of preparation
  const Prepared p = prepare(unresolved);
  Run run(p.request, p.queue, p.compute, p.data);
  run.start(p.request);
  const RunConfig& c = p.request.config;
  std::fprintf(stderr, "%s, %s on %s, data %s (%s, %lld images), batch %d\n%s\n",
               backbone_name(c.model.blocks).c_str(), name_of(p.compute),
               device_name(p.queue).c_str(), p.data.name.c_str(), p.data.origin.c_str(),
               static_cast<long long>(p.data.count), c.train.batch, config_json(c).dump().c_str());
  return run.loop();
}

void describe_training(const TrainRequest& unresolved) {
  const Prepared p = prepare(unresolved);
  const RunConfig& c = p.request.config;
  FlowModel model(c.model);
  const TrainerSettings settings = trainer_settings(c.train, p.compute, p.request.graph);
  const auto data_bytes = static_cast<std::int64_t>(p.data.pixels.size() + p.data.labels.size());
  const std::int64_t per_epoch = p.data.count / c.train.batch;
  std::cout << config_json(c).dump(2) << "\n\nbackbone    " << backbone_name(c.model.blocks)
            << "\nparameters  " << model.params().count() << "\ntokens      " << c.model.tokens()
            << "\ndevice      " << device_name(p.queue) << "\ndata        " << p.data.name << ", "
            << p.data.count << " images (" << p.data.origin << ")\nsteps       "
            << steps_of(c.train, per_epoch) << " (" << per_epoch << " an epoch)\nmemory      "
            << fixed(static_cast<double>(training_memory(p.queue, c.model, settings, data_bytes)) /
                         1048576.0,
                     1)
            << " MiB for training\n\nLoss on real MNIST, for comparison (mean squared error; half "
               "of it is half_loss):\n";
  for (const LossBound& bound : kMnistLossBounds)
    std::cout << "  " << fixed(bound.loss, 3) << "  " << bound.of << "\n";
}

}  // namespace fm
