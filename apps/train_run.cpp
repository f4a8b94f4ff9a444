#include "apps/train_run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "apps/data_source.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/train_checkpoint.h"
#include "engine/io/image_grid.h"
#include "models/solver.h"

namespace fm {
namespace {

constexpr int kSkippedInRowLimit = 50;
constexpr std::uint64_t kSampleSeed = 0;  // every grid of every run starts from the same noise

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

std::uint64_t total_steps(const TrainConfig& config, std::int64_t steps_per_epoch) {
  const std::uint64_t by_epochs = static_cast<std::uint64_t>(config.epochs * steps_per_epoch);
  return config.max_steps > 0 ? std::min(by_epochs, static_cast<std::uint64_t>(config.max_steps)) : by_epochs;
}

class Run {
 public:
  Run(const TrainRequest& request, const Queue& queue, DType compute, const DataSet& data)
      : config_(request.config),
        folder_(request.out),
        data_(data),
        trainer_(queue, config_.model, trainer_settings(config_.train, compute, request.graph), data),
        total_(total_steps(config_.train, trainer_.steps_per_epoch())) {}

  void start(const TrainRequest& request) {
    using Open = RunFolder::Open;
    folder_.open(request.overwrite ? Open::overwrite : request.resume.empty() ? Open::fresh : Open::resume);
    if (!request.resume.empty()) resume(request);
    folder_.write_json("config.json", config_json(config_));
    folder_.write_json("env.json", environment_json(trainer_.queue()));
  }

  int loop() {
    const std::uint64_t epoch_steps = static_cast<std::uint64_t>(trainer_.steps_per_epoch());
    Progress progress("training", total_, trainer_.steps());
    logged_ = trainer_.steps();
    while (trainer_.steps() < total_ && !caught_signal()) {
      trainer_.step();
      const std::uint64_t step = trainer_.steps();
      const bool epoch_end = step % epoch_steps == 0, last = step == total_;
      const auto due = [&](std::int64_t every) {
        return every > 0 ? step % static_cast<std::uint64_t>(every) == 0 : every == 0 && epoch_end;
      };
      if (due(config_.train.log_every) || epoch_end || last) log(progress, epoch_end || last);
      const bool save_now = due(config_.train.ckpt_every) || last, sample_now = due(config_.train.sample_every) ||
                                                                   (last && config_.train.sample_every >= 0);
      if (save_now || sample_now) log(progress, false);  // nothing is saved that was not looked at
      if (save_now) save();
      if (sample_now) draw();
      if (save_now || sample_now) trainer_.pause();
    }
    log(progress, false);
    summarise(progress.seconds());
    if (trainer_.steps() >= total_) {
      progress.line(concat("done: ", folder_.root().string(), ", step ", trainer_.steps(), ", ",
                           clock_text(progress.seconds())));
      return 0;
    }
    save();
    progress.line(concat("stopped by a signal at step ", trainer_.steps(), ", saved; go on with --out ",
                         folder_.root().string(), " --resume latest"));
    return signal_exit_code(caught_signal());
  }

 private:
  void resume(const TrainRequest& request) {
    std::filesystem::path path = request.resume;
    if (request.resume == "latest") {
      const auto latest = folder_.latest_checkpoint();
      if (!latest) {
        std::fprintf(stderr, "no checkpoint in %s: starting at step 0\n", folder_.root().c_str());
        return;
      }
      path = *latest;
    }
    path = resolve_checkpoint(path);
    resume_from(SafetensorsFile(path), trainer_, data_);
    const std::uint64_t step = trainer_.steps();
    folder_.trim(step, step / static_cast<std::uint64_t>(trainer_.steps_per_epoch()));
    std::fprintf(stderr, "resuming from %s at step %llu\n", path.c_str(), static_cast<unsigned long long>(step));
  }

  // Looks at every step since the last look; writes a row for the newest, and the epoch's at its end.
  void log(Progress& progress, bool epoch_row) {
    const std::uint64_t step = trainer_.steps();
    if (logged_ < step) {
      for (const StepRecord& record : trainer_.records(logged_, step)) check(record);
      logged_ = step;
      const StepRecord record = trainer_.records(step - 1, step).back();
      const double ms = quantile(trainer_.step_times_ms(), 0.5);
      const double rate = ms > 0 ? 1e3 * trainer_.settings().batch / ms : 0;
      Json row;
      row["step"] = step;
      row["epoch"] = (step - 1) / static_cast<std::uint64_t>(trainer_.steps_per_epoch()) + 1;
      row["loss"] = record.loss;
      row["half_loss"] = record.loss / 2;
      row["grad_norm"] = std::isfinite(record.grad_norm) ? Json(record.grad_norm) : Json(nullptr);
      row["loss_scale"] = record.loss_scale;
      row["lr"] = record.lr;
      row["step_ms"] = ms;
      row["images_per_s"] = rate;
      folder_.append_log(row);
      note_ = concat("loss ", fixed(record.loss, 4), "  ", fixed(ms, 2), " ms/step");
      if (!progress.terminal()) progress.line(concat("step ", step, "/", total_, "  ", note_, "  left ", progress.time_left(step)));
    }
    progress.update(step, note_);
    if (epoch_row) end_epoch(progress);
  }

  void check(const StepRecord& record) {
    const auto kept = folder_.latest_checkpoint();
    const std::string advice = concat("; the last good checkpoint is ", kept ? kept->string() : "none",
                                      "; try a lower --lr, --warmup-steps or --dtype bf16");
    if (!std::isfinite(record.loss))
      fail(Fault::not_finite, "[train] the loss of step ", record.step + 1, " is not finite", advice);
    if (record.skipped_in_row >= kSkippedInRowLimit)
      fail(Fault::not_finite, "[train] ", record.skipped_in_row, " steps in a row were skipped for gradients that are "
           "not finite, the last of them step ", record.step + 1, advice);
    if (record.loss_scale < kSmallestLossScale)
      fail(Fault::not_finite, "[train] the loss scale fell to ", record.loss_scale, " at step ", record.step + 1, advice);
  }

  void end_epoch(Progress& progress) {
    const std::uint64_t step = trainer_.steps(), per_epoch = static_cast<std::uint64_t>(trainer_.steps_per_epoch());
    const std::uint64_t steps = (step - 1) % per_epoch + 1, epoch = (step - 1) / per_epoch + 1;
    epoch_loss_ = trainer_.records(step - 1, step).back().epoch_loss_sum / static_cast<double>(steps);
    const double ms = quantile(trainer_.step_times_ms(), 0.5);
    if (steps == per_epoch) {
      folder_.append_metrics("epoch,step,loss,half_loss,step_ms,images_per_s,seconds",
                             concat(epoch, ',', step, ',', fixed(epoch_loss_, 6), ',', fixed(epoch_loss_ / 2, 6), ',',
                                    fixed(ms, 3), ',', fixed(ms > 0 ? 1e3 * trainer_.settings().batch / ms : 0, 1), ',',
                                    fixed(progress.seconds(), 1)));
      progress.line(concat("epoch ", epoch, "  loss ", fixed(epoch_loss_, 4), " (half ", fixed(epoch_loss_ / 2, 4),
                           ")  ", fixed(ms, 2), " ms/step  ", clock_text(progress.seconds())));
    }
  }

  void save() {
    const std::uint64_t step = trainer_.steps();
    write_training_checkpoint(folder_.checkpoint_path(step), trainer_, config_);
    folder_.checkpoint_written(step, config_.train.keep_last);
  }

  // A grid from the average of the weights where there is one, on fixed noise, so that grids of a run can be compared.
  void draw() {
    FlowModel model(config_.model);
    Context context(trainer_.queue(), trainer_.settings().compute);
    model.materialise(context, ParamStore::Use::inference);
    ParamStore& trained = trainer_.model().params();
    model.params().write(model.params().master(), trained.read(trained.ema() ? trained.ema() : trained.master()));
    model.params().refresh_compute();
    SampleRequest request;
    request.count = kSampleCount;
    request.seed = kSampleSeed;
    for (int i = 0; i < kSampleCount && config_.model.classes; ++i) request.labels.push_back(i % config_.model.classes);
    const std::vector<float> images = sample(trainer_.queue(), context.compute, model, request);
    const int side = config_.model.image;
    write_png(folder_.sample_path(trainer_.steps()),
              image_grid({.count = kSampleCount, .channels = config_.model.channels, .height = side, .width = side,
                          .images = images.data()}),
              {{"seed", concat(kSampleSeed)}, {"step", concat(trainer_.steps())},
               {"solver", name_of(request.settings.solver)}, {"steps", concat(request.settings.steps)}});
  }

  void summarise(double wall_s) {
    const std::vector<double> times = trainer_.step_times_ms();
    Queue queue = trainer_.queue();
    Json json;
    json["backbone"] = backbone_name(config_.model.blocks);
    json["params"] = trainer_.model().params().count();
    json["steps"] = trainer_.steps();
    json["final_epoch_loss"] = epoch_loss_;
    json["half_loss"] = epoch_loss_ / 2;
    json["step_ms"] = {{"median", quantile(times, 0.5)}, {"p90", quantile(times, 0.9)}, {"over", times.size()}};
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
  Trainer trainer_;
  std::uint64_t total_, logged_ = 0;
  double epoch_loss_ = 0;
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
  data = {choice.source, choice.data.name, choice.data.fingerprint, choice.data.count};
  request.config.model.image = choice.data.size;
  request.config.model.channels = choice.data.channels;
  validate(request.config.model);
  return {queue, compute, std::move(choice.data), std::move(request)};
}

}  // namespace

int run_training(const TrainRequest& unresolved) {
  const Prepared p = prepare(unresolved);
  Run run(p.request, p.queue, p.compute, p.data);
  run.start(p.request);
  const RunConfig& c = p.request.config;
  std::fprintf(stderr, "%s, %s on %s, data %s (%s, %lld images), batch %d\n%s\n", backbone_name(c.model.blocks).c_str(),
               name_of(p.compute), device_name(p.queue).c_str(), p.data.name.c_str(), p.data.origin.c_str(),
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
  std::cout << config_json(c).dump(2) << "\n\nbackbone    " << backbone_name(c.model.blocks) << "\nparameters  "
            << model.params().count() << "\ntokens      " << c.model.tokens() << "\ndevice      "
            << device_name(p.queue) << "\ndata        " << p.data.name << ", " << p.data.count << " images ("
            << p.data.origin << ")\nsteps       " << total_steps(c.train, per_epoch) << " (" << per_epoch
            << " an epoch)\nmemory      " << fixed(static_cast<double>(training_memory(p.queue, c.model, settings, data_bytes)) / 1048576.0, 1)
            << " MiB for training\n\nLoss on real MNIST, for comparison (mean squared error; half of it is half_loss):\n";
  for (const LossBound& bound : kMnistLossBounds)
    std::cout << "  " << fixed(bound.loss, 3) << "  " << bound.of << "\n";
}

}  // namespace fm
