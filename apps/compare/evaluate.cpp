#include "apps/compare/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/compare/measure.h"
#include "apps/compare/trajectory.h"
#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/run_folder.h"
#include "apps/statistics.h"
#include "apps/train_checkpoint.h"
#include "engine/io/atomic_file.h"
#include "engine/io/image_grid.h"
#include "models/checkpoint_config.h"
#include "models/flops.h"
#include "models/nearest.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kGrid = 64;                // samples of the picture
constexpr std::int64_t kNearestShown = 16;        // pairs of the picture of nearest images
constexpr int kSeedNoises = 8, kClassNoises = 4;  // rows of the viewer's pictures, a class each
constexpr std::uint64_t kLossSeed = 1;            // of the noises and times that a loss is taken at
constexpr std::int64_t kObeyed = 10;              // samples a class that are checked

fs::path part(const EvaluationRequest& request, const char* name) {
  return request.folder / "evaluation" / name;
}

Json head_of(const EvaluationRequest& r) {
  Json json;
  json["format"] = 1;
  json["backbone"] = r.backbone;
  json["label"] = r.label;
  json["preset"] = r.preset;
  json["seed"] = r.seed;
  json["conditional"] = r.conditional;
  json["failed"] = nullptr;
  return json;
}

void write(const EvaluationRequest& r, const Json& json) {
  fs::create_directories(r.folder / "evaluation");
  write_file(part(r, "evaluation.json"), json.dump(1) + "\n");
}

// A solver at a number of steps.
struct SweepPoint {
  std::string solver;
  SampleSettings settings;
  int evaluations;
};
std::vector<SweepPoint> sweep_points(const EvaluationConfig& c) {
  std::vector<SweepPoint> points;
  for (const std::string& name : c.sweep_solvers) {
    for (const double steps : c.sweep_steps) {
      const Solver solver = solver_named(name);
      const int evaluations = static_cast<int>(steps) * evaluations_per_step(solver);
      if (evaluations <= c.sweep_evaluations)
        points.push_back({name, {static_cast<int>(steps), solver, 1}, evaluations});
    }
  }
  return points;
}

class Evaluation {
 public:
  Evaluation(const EvaluationRequest& request, JudgeBench& bench)
      : r_(request),
        c_(request.config),
        bench_(bench),
        file_(resolve_checkpoint(request.folder)),
        trained_(training_config(file_)),
        compute_(make_dtype(trained_.train.dtype, bench.queue())),
        model_(trained_.model),
        sampler_(bench.queue(), compute_, model_),
        progress_(concat("evaluating ", request.backbone), work()) {
    Context context(bench.queue(), compute_);
    model_.materialise(context, ParamStore::Use::inference);
    average_ = has_weights(file_, model_.params(), Weights::ema);
    read_weights(file_, model_.params(), average_ ? Weights::ema : Weights::raw);
    fs::create_directories(request.folder / "evaluation");
  }

  void run() {
    json_ = head_of(r_);
    json_["blocks"] = trained_.model.blocks;
    json_["tokens"] = trained_.model.tokens();
    json_["steps"] = std::stoull(file_.metadata().at("step"));
    json_["params"] = model_.params().count();
    json_["weights"] = average_ ? "ema" : "raw";
    json_["dtype"] = name_of(compute_);
    json_["device"] = device_name(bench_.queue());
    json_["model"] = to_json(trained_.model);
    json_["train"] = to_json(trained_.train);
    json_["data"] = {{"name", bench_.data().train.name},
                     {"fingerprint", bench_.data().train.fingerprint},
                     {"train_images", bench_.data().train.count},
                     {"test_images", bench_.data().test.count},
                     {"channels", bench_.data().train.channels},
                     {"image", bench_.data().train.size}};
    json_["evaluation"] = to_json(c_);
    flops();
    if (r_.conditional) {
      obedience();
    } else {
      quality();
      losses();
      nearest();
      if (r_.thorough) sweep(), latency();
    }
    trajectories();
    write(r_, json_);
  }

 private:
  // Forward passes of an image, which is what most of the time goes into.
  std::uint64_t work() const {
    const auto of = [](double passes) { return static_cast<std::uint64_t>(passes); };
    if (r_.conditional) return 1;
    double passes =
        static_cast<double>(c_.judged) * c_.steps * evaluations_per_step(solver_named(c_.solver)) +
        2.0 * kTimeBins * static_cast<double>(c_.loss_images);
    if (r_.thorough)
      for (const SweepPoint& point : sweep_points(c_))
        passes += static_cast<double>(point.evaluations) * static_cast<double>(c_.sweep_judged);
    return of(passes);
  }

  void say(const std::string& what) {
    if (!progress_.terminal())
      progress_.line(concat(r_.backbone, " seed ", r_.seed, ": ", what, "  left ",
                            progress_.time_left(done_)));
  }

  std::vector<float> draw(std::int64_t count, const SampleSettings& settings) {
    SampleRequest request;
    request.count = count;
    request.settings = settings;
    request.seed = c_.sample_seed;
    const auto evaluations = static_cast<std::uint64_t>(evaluations_per_step(settings.solver));
    const std::uint64_t before = done_;
    request.on_step = [&](std::int64_t first, std::int64_t images, int step,
                          const std::vector<float>&) {
      throw_if_interrupted();
      done_ =
          before + static_cast<std::uint64_t>(first * settings.steps + images * step) * evaluations;
      progress_.update(done_, concat(settings.steps, " ", name_of(settings.solver), " steps"));
    };
    return sampler_(request);
  }

  void picture(const char* name, const std::vector<float>& images, std::int64_t count,
               std::int64_t per_row, const SampleSettings& settings) const {
    const ModelConfig& m = trained_.model;
    write_png(part(r_, name),
              image_grid({.count = count,
                          .channels = m.channels,
                          .height = m.image,
                          .width = m.image,
                          .images = images.data(),
                          .per_row = per_row}),
              {{"seed", concat(c_.sample_seed)},
               {"step", file_.metadata().at("step")},
               {"solver", name_of(settings.solver)},
               {"steps", concat(settings.steps)}});
  }

  void flops() {
    const Flops f = forward_flops(trained_.model);
    json_["flops"] = {{"forward", f.total()},
                      {"step", step_flops(trained_.model, trained_.train.batch)},
                      {"scan_share", f.scan / f.total()},
                      {"attention_share", f.attention / f.total()}};
  }

  void quality() {
    say(concat("drawing ", c_.judged, " samples"));
    const SampleSettings settings = judged_settings(c_);
    samples_ = draw(c_.judged, settings);
    picture("grid.png", samples_, std::min(kGrid, c_.judged), 8, settings);
    const Judge& judge = bench_.judge(c_.judged);
    const Verdict verdict = judge(samples_);
    json_["verdict"] = verdict_json(verdict);
    json_["judge"] = judge_json(verdict, judge, bench_.accuracy());
    progress_.line(concat(r_.label, " seed ", r_.seed, ": ", verdict.sentence));
  }

  void losses() {
    say("losses along t");
    Json bins;
    double test_mean = 0;
    for (const bool test : {true, false}) {
      const std::uint64_t before = done_;
      const auto loss = loss_by_time(
          bench_.queue(), compute_, model_, test ? bench_.data().test : bench_.data().train,
          c_.loss_images, kLossSeed, [&](std::int64_t images) {
            done_ = before + static_cast<std::uint64_t>(images) * kTimeBins;
            progress_.update(done_, "loss along t");
          });
      bins[test ? "test" : "train"] = loss;
      if (test) test_mean = std::accumulate(loss.begin(), loss.end(), 0.0) / kTimeBins;
    }
    json_["held_out_loss"] = test_mean;
    json_["loss_bins"] = bins;
  }

  void nearest() {
    const std::int64_t count = std::min(c_.nearest, bench_.data().test.count);
    if (count == 0) return;
    const std::int64_t pixels = bench_.data().train.pixels_per_image();
    CpuQueue host(r_.threads);
    const std::vector<float> some(samples_.begin(), samples_.begin() + count * pixels);
    const auto found = nearest_images(host, bench_.data().train, some);
    const auto real =
        nearest_images(host, bench_.data().train, scaled_images(bench_.data().test, 0, count));
    std::vector<double> distances, real_distances;
    for (const NearestImage& n : found)
      if (n.index >= 0) distances.push_back(n.distance);
    for (const NearestImage& n : real) real_distances.push_back(n.distance);
    const double closest_real = quantile(real_distances, 0);
    json_["nearest"] = {{"count", count},
                        {"median", quantile(distances, 0.5)},
                        {"closest", quantile(distances, 0)},
                        {"median_real", quantile(real_distances, 0.5)},
                        {"closest_real", closest_real},
                        {"copies", std::count_if(distances.begin(), distances.end(),
                                                 [&](double d) { return d < closest_real / 2; })}};
    const std::int64_t shown = std::min(kNearestShown, count);
    std::vector<float> pairs(some.begin(), some.begin() + shown * pixels);
    for (std::int64_t i = 0; i < shown; ++i) {
      const std::int64_t index =
          std::max<std::int64_t>(found[static_cast<std::size_t>(i)].index, 0);
      const std::vector<float> one = scaled_images(bench_.data().train, index, 1);
      pairs.insert(pairs.end(), one.begin(), one.end());
    }
    picture("nearest.png", pairs, 2 * shown, shown, judged_settings(c_));
  }

  void sweep() {
    json_["steps_quality"] = Json::array();
    for (const SweepPoint& point : sweep_points(c_)) {
      say(concat(point.settings.steps, " ", point.solver, " steps"));
      const Verdict verdict = bench_.judge(c_.sweep_judged)(swept(point));
      json_["steps_quality"].push_back({{"solver", point.solver},
                                        {"steps", point.settings.steps},
                                        {"evaluations", point.evaluations},
                                        {"frechet", verdict.figures.frechet},
                                        {"recognised", verdict.figures.recognised},
                                        {"passes", verdict.passes}});
    }
  }

  // The samples of a point; those that were judged serve again.
  std::vector<float> swept(const SweepPoint& point) {
    if (!(point.settings == judged_settings(c_)) || c_.judged < c_.sweep_judged)
      return draw(c_.sweep_judged, point.settings);
    done_ +=
        static_cast<std::uint64_t>(c_.sweep_judged) * static_cast<std::uint64_t>(point.evaluations);
    const std::int64_t pixels = bench_.data().train.pixels_per_image();
    return {samples_.begin(), samples_.begin() + c_.sweep_judged * pixels};
  }

  void latency() {
    say("sampling times");
    json_["latency"] = Json::array();
    for (const double batch : c_.batches) {
      const double ms = quantile(
          sampling_times(sampler_, judged_settings(c_), static_cast<int>(batch), c_.latency_runs),
          0.5);
      json_["latency"].push_back(
          {{"batch", static_cast<int>(batch)}, {"ms", ms}, {"images_per_s", 1e3 * batch / ms}});
    }
  }

  SampleSettings guided() const {
    SampleSettings settings = judged_settings(c_);
    if (r_.conditional) settings.cfg_scale = static_cast<float>(c_.cfg_scale);
    return settings;
  }

  // Does the model draw what it is asked for? Of a few samples a class, the share that the judge's
  // classifier takes for the class asked for.
  void obedience() {
    const int classes = trained_.model.classes;
    SampleRequest request;
    request.count = kObeyed * classes;
    request.settings = guided();
    request.seed = c_.sample_seed;
    for (std::int64_t i = 0; i < request.count; ++i)
      request.labels.push_back(static_cast<std::int32_t>(i % classes));
    request.on_step = [](std::int64_t, std::int64_t, int, const std::vector<float>&) {
      throw_if_interrupted();
    };
    const std::vector<float> images = sampler_(request);
    picture("grid.png", images, request.count, classes, request.settings);
    const double share = bench_.share_named(images, request.labels);
    json_["obeys"] = {{"cfg_scale", c_.cfg_scale}, {"count", request.count}, {"share", share}};
    progress_.line(concat(r_.label, ", class-conditional: ", std::lround(100 * share), " % of ",
                          request.count, " guided samples are the digit asked for"));
  }

  void trajectories() {
    TrajectoryRequest request;
    if (r_.conditional)
      for (int label = 0; label < trained_.model.classes; ++label) request.labels.push_back(label);
    request.noises = r_.conditional ? kClassNoises : kSeedNoises;
    request.seed = c_.sample_seed;
    request.settings = guided();
    const Trajectories drawn = record_trajectories(sampler_, trained_.model, request);
    write_png(part(r_, "states.png"), drawn.states);
    write_png(part(r_, "velocities.png"), drawn.velocities);
    Json viewer;
    viewer["frame"] = viewer_frame(trained_.model, request.settings);
    viewer["cfg_scale"] = request.settings.cfg_scale;
    viewer["rows"] = trajectory_rows(request);
    json_["viewer"] = viewer;
  }

  const EvaluationRequest& r_;
  const EvaluationConfig& c_;
  JudgeBench& bench_;
  SafetensorsFile file_;
  RunConfig trained_;
  DType compute_;
  FlowModel model_;
  Sampler sampler_;
  Progress progress_;
  std::uint64_t done_ = 0;
  bool average_ = false;
  std::vector<float> samples_;
  Json json_;
};

}  // namespace

void evaluate_run(const EvaluationRequest& request, JudgeBench& bench) {
  Evaluation(request, bench).run();
}

void write_failed_evaluation(const EvaluationRequest& request, const std::string& why) {
  Json json = head_of(request);
  json["failed"] = why;
  write(request, json);
}

std::optional<Json> read_evaluation(const fs::path& folder) {
  return RunFolder(folder).read_json("evaluation/evaluation.json");
}

}  // namespace fm
