#include "apps/sample_run.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <memory>

#include "apps/environment.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/run_folder.h"
#include "engine/io/atomic_file.h"
#include "engine/io/checkpoint.h"
#include "engine/io/image_grid.h"
#include "models/checkpoint_config.h"
#include "models/solver.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kConfigLimit = 1 << 20;
constexpr std::int64_t kMaxImages = 1 << 20;

std::optional<Json> given_config(const std::string& path) {
  if (path.empty()) return std::nullopt;
  const auto bytes = read_file(path, kConfigLimit);
  Json json = Json::parse(bytes.begin(), bytes.end(), nullptr, false);
  if (json.is_discarded()) fail(Fault::data, "[config] ", path, " is not JSON");
  return json.contains("model") ? json["model"] : json;
}

Weights chosen_weights(const std::string& asked, const SafetensorsFile& file,
                       const ParamStore& params) {
  FM_CHECK(asked == "auto" || asked == "raw" || asked == "ema",
           "[sample] weights must be raw, ema or auto, got ", asked);
  if (asked == "auto") return has_weights(file, params, Weights::ema) ? Weights::ema : Weights::raw;
  return asked == "ema" ? Weights::ema : Weights::raw;
}

// Noise of the file's `noise` tensor; its number of images is how many are drawn.
std::vector<float> read_noise(const std::string& path, const ModelConfig& config,
                              std::int64_t& count) {
  const SafetensorsFile file(path);
  const std::vector<std::int64_t> shape = file.at("noise").shape;
  if (shape.size() != 4 || shape[0] < 1 || shape[1] != config.channels ||
      shape[2] != config.image || shape[3] != config.image)
    fail(Fault::data, "[sample] noise must be [N, ", config.channels, ", ", config.image, ", ",
         config.image, "], got ", shape_text(shape), " (", path, ")");
  count = shape[0];
  return file.read_floats<float>("noise");
}

std::vector<std::int32_t> labels_of(const std::string& label, int classes, std::int64_t count) {
  if (label.empty()) return {};
  FM_CHECK(classes > 0, "[sample] the checkpoint has no classes, so --label ", label,
           " means nothing to it");
  std::vector<std::int32_t> labels(static_cast<std::size_t>(count));
  if (label == "all") {
    for (std::size_t i = 0; i < labels.size(); ++i)
      labels[i] = static_cast<std::int32_t>(i) % classes;
    return labels;
  }
  std::fill(labels.begin(), labels.end(), label_named(label, classes));
  return labels;
}

// The pictures of one sampling run.
class Pictures {
 public:
  Pictures(const ModelConfig& config, std::int64_t count, const SampleOptions& options,
           const std::string& trained_steps)
      : config_(config),
        count_(count),
        per_row_(options.label == "all" ? config.classes : 8),
        text_({{"seed", options.noise.empty() ? concat(options.seed) : options.noise},
               {"step", trained_steps},
               {"solver", options.solver},
               {"steps", concat(options.steps)}}) {}

  void write(const fs::path& path, const float* images) const {
    write_png(path,
              image_grid({.count = count_,
                          .channels = config_.channels,
                          .height = config_.image,
                          .width = config_.image,
                          .images = images,
                          .per_row = per_row_}),
              text_);
  }

 private:
  const ModelConfig& config_;
  std::int64_t count_, per_row_;
  PngText text_;
};

std::string trained_steps(const SafetensorsFile& file) {
  const auto found = file.metadata().find("step");
  return found == file.metadata().end() ? "unknown" : found->second;
}

const std::string& only_checkpoint(const SampleOptions& o) {
  FM_CHECK(o.checkpoints.size() == 1, "[sample] one --ckpt is sampled at a time, got ",
           o.checkpoints.size(), "; several go together in a --viewer");
  return o.checkpoints.front();
}

}  // namespace

LoadedModel::LoadedModel(const std::string& checkpoint, const SampleOptions& o, const Queue& queue,
                         DType compute)
    : file(resolve_checkpoint(checkpoint)),
      model(checkpoint_config(file, given_config(o.config))),
      context(queue, compute),
      weights(Weights::raw) {
  model.materialise(context, ParamStore::Use::inference);
  weights = chosen_weights(o.weights, file, model.params());
  read_weights(file, model.params(), weights);
}

SampleSettings sample_settings(const SampleOptions& o) {
  FM_CHECK(o.steps > 0 && o.steps <= 100'000, "[sample] steps must be 1 to 100000, got ", o.steps);
  FM_CHECK(std::isfinite(o.cfg_scale), "[sample] cfg_scale must be a number, got ", o.cfg_scale);
  return {o.steps, solver_named(o.solver), static_cast<float>(o.cfg_scale)};
}

int label_named(const std::string& label, int classes) {
  int value = -1;
  const auto [end, error] = std::from_chars(label.data(), label.data() + label.size(), value);
  FM_CHECK(
      error == std::errc() && end == label.data() + label.size() && value >= 0 && value < classes,
      "[sample] label must be all or 0 to ", classes - 1, ", got ", label);
  return value;
}

void run_sampling(const SampleOptions& o) {
  const Queue queue = make_queue(o.device, o.threads);
  const DType compute = make_dtype(o.dtype, queue);
  const SampleSettings settings = sample_settings(o);
  FM_CHECK(o.count > 0 && o.count <= kMaxImages, "[sample] n must be 1 to ", kMaxImages, ", got ",
           o.count);
  FM_CHECK(o.batch > 0, "[sample] batch must be positive, got ", o.batch);

  const LoadedModel loaded(only_checkpoint(o), o, queue, compute);
  const SafetensorsFile& file = loaded.file;
  const ModelConfig& config = loaded.model.config();

  SampleRequest request;
  request.count = o.count;
  std::vector<float> noise;
  if (!o.noise.empty()) {
    noise = read_noise(o.noise, config, request.count);
    request.noise = &noise;
  }
  request.settings = settings;
  request.seed = o.seed;
  request.labels = labels_of(o.label, config.classes, request.count);
  request.batch = o.batch;
  request.wants_states = !o.trajectory.empty();
  std::fprintf(stderr, "%s, %s weights, %s on %s, %lld images, %d %s steps\n", file.path().c_str(),
               loaded.weights == Weights::ema ? "ema" : "raw", name_of(compute),
               device_name(queue).c_str(), static_cast<long long>(request.count), o.steps,
               o.solver.c_str());

  const std::int64_t pixels = std::int64_t{config.channels} * config.image * config.image;
  const std::size_t state = static_cast<std::size_t>(request.count * pixels);
  std::vector<float> trajectory(request.wants_states ? state * static_cast<std::size_t>(o.steps + 1)
                                                     : 0);
  Progress progress("sampling", static_cast<std::uint64_t>(request.count * o.steps));
  request.on_step = [&](std::int64_t first, std::int64_t images, int step,
                        const std::vector<float>& states) {
    throw_if_interrupted();
    if (request.wants_states)
      std::copy(states.begin(), states.end(),
                trajectory.begin() +
                    static_cast<std::ptrdiff_t>(static_cast<std::size_t>(step) * state) +
                    first * pixels);
    progress.update(static_cast<std::uint64_t>(first * o.steps + images * step), "");
  };
  const std::vector<float> samples = sample(queue, compute, loaded.model, request);

  const Pictures pictures(config, request.count, o, trained_steps(file));
  const std::vector<std::int64_t> shape = {request.count, config.channels, config.image,
                                           config.image};
  if (!o.out.empty()) {
    pictures.write(o.out, samples.data());
    std::cout << o.out << "\n";
  }
  if (!o.save_tensor.empty()) {
    write_safetensors(o.save_tensor, {{"samples", DType::f32, shape, samples.data()}});
    std::cout << o.save_tensor << "\n";
  }
  if (request.wants_states) {
    std::error_code error;
    fs::create_directories(o.trajectory, error);
    for (int step = 0; step <= o.steps; ++step) {
      char name[32];
      std::snprintf(name, sizeof name, "step-%04d.png", step);
      pictures.write(fs::path(o.trajectory) / name,
                     trajectory.data() + static_cast<std::size_t>(step) * state);
    }
    const fs::path all = fs::path(o.trajectory) / "trajectory.safetensors";
    write_safetensors(all, {{"trajectory",
                             DType::f32,
                             {o.steps + 1, shape[0], shape[1], shape[2], shape[3]},
                             trajectory.data()}});
    std::cout << all.string() << "\n";
  }
}

void print_checkpoint_info(const SampleOptions& o) {
  const SafetensorsFile file(resolve_checkpoint(only_checkpoint(o)));
  const FlowModel model(checkpoint_config(file, given_config(o.config)));
  std::cout << file.path().string() << "\nbackbone    " << backbone_name(model.config().blocks)
            << "\nparameters  " << model.params().count() << "\nstep        " << trained_steps(file)
            << "\nweights     " << (has_weights(file, model.params(), Weights::raw) ? "raw" : "")
            << (has_weights(file, model.params(), Weights::ema) ? " ema" : "") << "\nconfig      "
            << to_json(model.config()).dump() << "\n";
  for (const auto& [key, value] : file.metadata())
    if (key != "config" && key != "step")
      std::cout << std::left << std::setw(12) << key << value << "\n";
  std::cout << "tensors     " << file.tensors().size() << "\n";
  for (const StoredTensor& tensor : file.tensors())
    std::cout << "  " << std::setw(48) << tensor.name << tensor.dtype << " "
              << shape_text(tensor.shape) << "\n";
}

}  // namespace fm
