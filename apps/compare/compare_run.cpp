#include "apps/compare/compare_run.h"

#include <chrono>
#include <cstdio>
#include <iostream>

#include "apps/compare/evaluate.h"
#include "apps/compare/report_files.h"
#include "apps/data_source.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/run_folder.h"
#include "apps/train_run.h"
#include "engine/io/atomic_file.h"
#include "models/flops.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

int classes_of(const DataSet& data) {
  int most = 0;
  for (const std::uint8_t label : data.labels) most = std::max(most, int{label});
  return most + 1;
}

// What must be the same for a run to go on; limits, logging and where the data lies may change.
Json identity(const Json& config) {
  Json same;
  same["model"] = config.at("model");
  same["train"] = config.at("train");
  for (const char* free :
       {"epochs", "max_steps", "log_every", "ckpt_every", "sample_every", "keep_last"})
    same["train"].erase(free);
  same["fingerprint"] = config.at("data").at("fingerprint");
  return same;
}

class ComparisonRun {
 public:
  ComparisonRun(const CompareRequest& request, const Queue& queue, const StudyData& data)
      : r_(request), queue_(queue), data_(data), comparison_(request.comparison) {
    const std::string dtype =
        name_of(make_dtype(comparison_.contenders.front().config.train.dtype, queue_));
    for (Contender& contender : comparison_.contenders) {
      RunConfig& c = contender.config;
      c.model.image = data_.train.size;
      c.model.channels = data_.train.channels;
      c.train.dtype = dtype;
      c.data = {data_.source, data_.train.name, data_.train.fingerprint, data_.train.count};
      validate(c.model);
      validate(c.train);
    }
    const std::int64_t per_epoch =
        data_.train.count / comparison_.contenders.front().config.train.batch;
    FM_CHECK(per_epoch > 0, "[compare] batch must be at most the ", data_.train.count,
             " images of ", data_.train.name);
    std::fprintf(stderr, "%s\n", check_parameters(comparison_, r_.allow_unequal).c_str());
    runs_ = planned_runs(comparison_, classes_of(data_.train), per_epoch, r_.only);
    per_epoch_ = per_epoch;
    for (const PlannedRun& run : runs_) check(run);
  }

  const std::vector<PlannedRun>& runs() const { return runs_; }
  const Comparison& comparison() const { return comparison_; }

  int go() {
    fs::create_directories(r_.out / "runs");
    remove_stale_temporaries(r_.out);
    write_plan();
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const PlannedRun& run = runs_[i];
      if (finished(run)) {
        std::fprintf(stderr, "run %zu of %zu, %s: finished before\n", i + 1, runs_.size(),
                     run.folder.c_str());
        continue;
      }
      announce(i);
      if (const int code = train(run)) return code;
      throw_if_interrupted();
    }
    return 0;
  }

 private:
  fs::path folder(const PlannedRun& run) const { return r_.out / "runs" / run.folder; }
  std::int64_t steps(const PlannedRun& run) const { return steps_of(run.config.train, per_epoch_); }
  std::int64_t steps_done(const PlannedRun& run) const {
    const auto summary = RunFolder(folder(run)).read_json("summary.json");
    return summary ? summary->value("steps", std::int64_t{0}) : 0;
  }

  // Refuses to go on in a folder of another run.
  void check(const PlannedRun& run) const {
    if (r_.overwrite) return;
    const auto there = RunFolder(folder(run)).read_json("config.json");
    if (!there) return;
    FM_CHECK(identity(*there) == identity(config_json(run.config)), "[compare] ",
             folder(run).string(),
             " must be a run with these settings, got another; choose another --out, or start anew "
             "with --overwrite. There: ",
             identity(*there).dump(), "; asked for: ", identity(config_json(run.config)).dump());
    FM_CHECK(steps_done(run) <= steps(run), "[compare] ", folder(run).string(), " has ",
             steps_done(run), " steps, more than the ", steps(run), " asked for");
  }

  bool finished(const PlannedRun& run) const {
    if (r_.overwrite || r_.again) return false;
    const auto seen = read_evaluation(folder(run));
    if (!seen) return false;
    return !seen->at("failed").is_null() || seen->value("steps", std::int64_t{0}) == steps(run);
  }

  void write_plan() const {
    Json plan;
    plan["format"] = 1;
    plan["preset"] = comparison_.preset;
    plan["seeds"] = comparison_.seeds;
    plan["viewer"] = comparison_.viewer;
    plan["evaluation"] = to_json(comparison_.evaluation);
    for (const Contender& c : comparison_.contenders)
      plan["backbones"].push_back(
          {{"name", c.name}, {"label", c.label}, {"config", config_json(c.config)}});
    write_file(r_.out / "compare.json", plan.dump(1) + "\n");
  }

  // Which run this is, and, once one is done, when all of them will be.
  void announce(std::size_t index) {
    double left = 0;  // steps that are to come
    for (std::size_t i = index; i < runs_.size(); ++i)
      if (!finished(runs_[i])) left += static_cast<double>(steps(runs_[i]) - steps_done(runs_[i]));
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    std::fprintf(
        stderr, "run %zu of %zu, %s: %lld steps%s\n", index + 1, runs_.size(),
        runs_[index].folder.c_str(), static_cast<long long>(steps(runs_[index])),
        trained_ > 0
            ? concat("; all runs left ", clock_text(passed.count() / trained_ * left)).c_str()
            : "");
  }

  int train(const PlannedRun& run) {
    EvaluationRequest look{
        .folder = folder(run),
        .backbone = run.contender->name,
        .label = run.contender->label,
        .preset = comparison_.preset,
        .seed = run.config.train.seed,
        .conditional = run.conditional,
        .thorough = run.config.train.seed <
                    static_cast<std::uint64_t>(comparison_.evaluation.thorough_seeds),
        .config = comparison_.evaluation,
        .threads = r_.threads};
    const RunFolder there(folder(run));
    const std::int64_t before = r_.overwrite ? 0 : steps_done(run);
    // The summary alone is not enough: the last checkpoint is written after it.
    if (r_.overwrite || before < steps(run) ||
        !fs::exists(there.checkpoint_path(static_cast<std::uint64_t>(steps(run))))) {
      TrainRequest training;
      training.config = run.config;
      training.out = folder(run);
      training.device = r_.device;
      training.threads = r_.threads;
      if (r_.overwrite) {
        fs::remove_all(folder(run) / "evaluation");
        training.overwrite = true;
      } else if (fs::exists(folder(run))) {
        training.resume = "latest";
        training.checkpoint = there.latest_checkpoint().value_or("");
      }
      try {
        if (const int code = run_training(training)) return code;
      } catch (const Error& error) {
        if (error.fault() != Fault::not_finite) throw;
        std::fprintf(stderr, "%s\n", error.what());
        write_failed_evaluation(look, error.what());
        return 0;
      }
    }
    trained_ += static_cast<double>(steps(run) - before);
    if (!bench_)
      bench_ = std::make_unique<JudgeBench>(queue_, data_, r_.out,
                                            comparison_.evaluation.classifier_epochs);
    evaluate_run(look, *bench_);
    return 0;
  }

  const CompareRequest& r_;
  Queue queue_;
  const StudyData& data_;
  Comparison comparison_;
  std::vector<PlannedRun> runs_;
  std::int64_t per_epoch_ = 0;
  std::unique_ptr<JudgeBench> bench_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double trained_ = 0;  // steps, since the start
};

StudyData study_data(const CompareRequest& request) {
  std::string source = request.data;
  if (request.download) {
    download_mnist(mnist_cache());
    if (source == "auto") source = mnist_cache().string();
  }
  return load_study_data(source, request.threads);
}

}  // namespace

int run_comparison(const CompareRequest& request) {
  validate(request.comparison.evaluation);
  const Queue queue = make_queue(request.device, request.threads);
  const StudyData data = study_data(request);
  ComparisonRun comparison(request, queue, data);
  if (const int code = comparison.go()) return code;
  print_report(write_report(request.out), std::cout);
  return 0;
}

void describe_comparison(const CompareRequest& request) {
  validate(request.comparison.evaluation);
  const Queue queue = make_queue(request.device, request.threads);
  const StudyData data = study_data(request);
  const ComparisonRun comparison(request, queue, data);
  for (const Contender& c : comparison.comparison().contenders) {
    const Flops f = forward_flops(c.config.model);
    char text[128];
    std::snprintf(text, sizeof text, "%.3g GFLOP forward an image, scan %.1f %%, attention %.1f %%",
                  f.total() / 1e9, 100 * f.scan / f.total(), 100 * f.attention / f.total());
    std::cout << c.name << ": " << text << "\n" << config_json(c.config).dump() << "\n";
  }
  std::cout << "evaluation: " << to_json(comparison.comparison().evaluation).dump() << "\n";
  for (const PlannedRun& run : comparison.runs())
    std::cout << "run " << run.folder << ": "
              << steps_of(run.config.train, data.train.count / run.config.train.batch)
              << " steps\n";
}

}  // namespace fm
