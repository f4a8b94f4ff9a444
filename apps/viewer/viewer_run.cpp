#include "apps/viewer/viewer_run.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>

#include "apps/compare/trajectory.h"
#include "apps/environment.h"
#include "apps/run_folder.h"
#include "apps/viewer/viewer_page.h"
#include "engine/io/base64.h"

namespace fm {
namespace {

constexpr int kMostClasses = 10;  // keys 0 to 9
// Of all pictures: a page of at most 8 MB where they are grey.
constexpr std::int64_t kMostPixels = 6'000'000;

bool has_classes(const LoadedModel& loaded) {
  return loaded.model.config().classes > 0;
}

std::string backbone_label(const LoadedModel& loaded) {
  const std::string name = backbone_name(loaded.model.config().blocks);
  if (name == "mamba") return "Mamba";
  if (name == "transformer") return "Transformer";
  if (name == "hybrid") return "Hybrid";
  return "Custom";
}

// What a reader calls a checkpoint: by its backbone, and by its run where two of a set share one.
std::vector<std::string> labels_of(const std::vector<std::unique_ptr<LoadedModel>>& models) {
  std::vector<std::string> labels;
  for (const auto& loaded : models) {
    std::string label = backbone_label(*loaded);
    const auto same = [&](const auto& other) {
      return backbone_label(*other) == label && has_classes(*other) == has_classes(*loaded);
    };
    if (std::count_if(models.begin(), models.end(), same) > 1) {
      const std::filesystem::path run = run_of(loaded->file.path());
      label += " (" + (run.empty() ? loaded->file.path().stem() : run.filename()).string() + ")";
      while (std::count(labels.begin(), labels.end(), label) > 0) label += "\u2032";
    }
    labels.push_back(label);
  }
  return labels;
}

std::vector<int> classes_drawn(const SampleOptions& o, int classes) {
  if (!o.label.empty() && o.label != "all") return {label_named(o.label, classes)};
  std::vector<int> all(static_cast<std::size_t>(std::min(classes, kMostClasses)));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

void run_viewer(const SampleOptions& o) {
  const Queue queue = make_queue(o.device, o.threads);
  const DType compute = make_dtype(o.dtype, queue);
  FM_CHECK(o.viewer_noises > 0 && o.viewer_noises <= 64, "[viewer] noises must be 1 to 64, got ",
           o.viewer_noises);
  const SampleSettings settings = sample_settings(o);

  std::vector<std::unique_ptr<LoadedModel>> models;
  for (const std::string& checkpoint : o.checkpoints)
    models.push_back(std::make_unique<LoadedModel>(checkpoint, o, queue, compute));
  const std::vector<std::string> labels = labels_of(models);
  const ModelConfig& first = models.front()->model.config();

  TrajectoryRequest by_class, by_noise;
  by_class.noises = by_noise.noises = o.viewer_noises;
  by_class.seed = by_noise.seed = o.seed;
  by_class.settings = by_noise.settings = settings;
  by_noise.settings.cfg_scale = 1;
  std::int64_t conditional = 0;
  int classes = std::numeric_limits<int>::max();
  for (std::size_t i = 0; i < models.size(); ++i) {
    const ModelConfig& config = models[i]->model.config();
    FM_CHECK(config.image == first.image && config.channels == first.channels,
             "[viewer] checkpoints must draw images of one size, got ", first.channels, " x ",
             first.image, " x ", first.image, " (", o.checkpoints.front(), ") and ",
             config.channels, " x ", config.image, " x ", config.image, " (", o.checkpoints[i],
             ")");
    if (config.classes) {
      ++conditional;
      classes = std::min(classes, config.classes);
    }
  }
  FM_CHECK(conditional || o.label.empty(), "[viewer] no checkpoint has classes, so --label ",
           o.label, " means nothing to them");
  if (conditional) by_class.labels = classes_drawn(o, classes);

  const auto count = static_cast<std::int64_t>(models.size());
  const std::int64_t rows =
      o.viewer_noises *
      (conditional * static_cast<std::int64_t>(by_class.labels.size()) + count - conditional);
  const std::int64_t pixels =
      rows * (2 * o.steps + 1) * (first.channels < 3 ? 1 : 3) * first.image * first.image;
  FM_CHECK(pixels <= kMostPixels, "[viewer] the pictures must have at most ", kMostPixels / 1000000,
           " million pixels to make a page that opens at once, got ", pixels / 1000000,
           " million; lower --steps or --viewer-noises");

  const auto set_of = [&](const char* kind, const char* title, const TrajectoryRequest& request,
                          bool with_classes) {
    Json set;
    set["kind"] = kind;
    set["title"] = title;
    set["cfg_scale"] = request.settings.cfg_scale;
    set["rows"] = trajectory_rows(request);
    set["backbones"] = Json::array();
    for (std::size_t i = 0; i < models.size(); ++i) {
      const LoadedModel& loaded = *models[i];
      if (has_classes(loaded) != with_classes) continue;
      std::fprintf(stderr, "%s: %s, %zu trajectories of %d %s steps, %s on %s\n", labels[i].c_str(),
                   loaded.file.path().c_str(), set["rows"].size(), o.steps, o.solver.c_str(),
                   name_of(compute), device_name(queue).c_str());
      Sampler sampler(queue, compute, loaded.model);
      const Trajectories drawn = record_trajectories(sampler, loaded.model.config(), request);
      set["backbones"].push_back({{"name", labels[i]},
                                  {"label", labels[i]},
                                  {"states", png_uri(encode_png(drawn.states))},
                                  {"velocities", png_uri(encode_png(drawn.velocities))}});
    }
    return set;
  };
  Json viewer = viewer_frame(first, settings);
  viewer["seed"] = o.seed;
  viewer["sets"] = Json::array();
  if (conditional) viewer["sets"].push_back(set_of("classes", "By digit", by_class, true));
  if (conditional < count) viewer["sets"].push_back(set_of("seeds", "By noise", by_noise, false));

  const std::size_t bytes = write_viewer_page(o.viewer, "From noise to digits", viewer);
  std::fprintf(stderr, "page of %.1f MB\n", static_cast<double>(bytes) / 1e6);
  std::cout << o.viewer << "\n";
}

}  // namespace fm
