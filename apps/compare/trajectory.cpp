#include "apps/compare/trajectory.h"

#include <algorithm>
#include <cmath>

#include "apps/program.h"
#include "kernels/base/rng.h"

namespace fm {
namespace {

// [-range, range] as a byte; NaN is the lowest.
std::uint8_t byte_of(double value, double range) {
  const double clamped = std::isnan(value) ? -range : std::clamp(value, -range, range);
  return static_cast<std::uint8_t>(std::lround((clamped / range + 1) * 127.5));
}

// A picture of cells, each an image of 1 or 3 channels. Of 2 channels the first is shown, of 4 the
// first three.
class Cells {
 public:
  Cells(const ModelConfig& model, std::int64_t rows, std::int64_t columns)
      : side_(model.image), image_{columns * side_, rows * side_, model.channels < 3 ? 1 : 3, {}} {
    image_.pixels.resize(static_cast<std::size_t>(image_.width * image_.height * image_.channels));
  }

  // pixels [C, side, side]
  void put(std::int64_t row, std::int64_t column, const float* pixels, double range) {
    for (std::int64_t y = 0; y < side_; ++y)
      for (std::int64_t x = 0; x < side_; ++x)
        for (int c = 0; c < image_.channels; ++c)
          image_.pixels[static_cast<std::size_t>(
              ((row * side_ + y) * image_.width + column * side_ + x) * image_.channels + c)] =
              byte_of(pixels[(c * side_ + y) * side_ + x], range);
  }
  Image take() { return std::move(image_); }

 private:
  std::int64_t side_;
  Image image_;
};

}  // namespace

Trajectories record_trajectories(Sampler& sampler, const ModelConfig& model,
                                 const TrajectoryRequest& request) {
  const std::int64_t pixels = std::int64_t{model.channels} * model.image * model.image;
  const auto groups = static_cast<std::int64_t>(std::max<std::size_t>(request.labels.size(), 1));
  const std::int64_t rows = groups * request.noises, steps = request.settings.steps;
  std::vector<float> noise(static_cast<std::size_t>(rows * pixels));
  SampleRequest draw;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto item = static_cast<std::uint32_t>(row % request.noises);
    fill_normals({request.seed, stream::sampling, 0, item}, 0, pixels, noise.data() + row * pixels);
    if (!request.labels.empty())
      draw.labels.push_back(request.labels[static_cast<std::size_t>(row / request.noises)]);
  }
  Cells states(model, rows, steps + 1), velocities(model, rows, steps);
  std::vector<float> before = noise, velocity(static_cast<std::size_t>(pixels));
  draw.count = rows;
  draw.noise = &noise;
  draw.settings = request.settings;
  draw.wants_states = true;
  draw.on_step = [&](std::int64_t first, std::int64_t images, int step,
                     const std::vector<float>& now) {
    throw_if_interrupted();
    for (std::int64_t i = 0; i < images; ++i) {
      const float* state = now.data() + i * pixels;
      float* last = before.data() + (first + i) * pixels;
      states.put(first + i, step, state, 1);
      if (step > 0) {
        for (std::int64_t p = 0; p < pixels; ++p)
          velocity[static_cast<std::size_t>(p)] = (state[p] - last[p]) * static_cast<float>(steps);
        velocities.put(first + i, step - 1, velocity.data(), kVelocityRange);
      }
      std::copy_n(state, pixels, last);
    }
  };
  sampler(draw);
  return {states.take(), velocities.take()};
}

Json trajectory_rows(const TrajectoryRequest& request) {
  Json rows = Json::array();
  const auto add = [&](const Json& label) {
    for (int noise = 0; noise < request.noises; ++noise) {
      Json row;
      if (!label.is_null()) row["label"] = label;
      row["noise"] = noise;
      rows.push_back(row);
    }
  };
  if (request.labels.empty()) add(Json());
  for (const int label : request.labels) add(label);
  return rows;
}

Json viewer_frame(const ModelConfig& model, const SampleSettings& settings) {
  Json json;
  json["image"] = model.image;
  json["channels"] = model.channels < 3 ? 1 : 3;
  json["solver"] = name_of(settings.solver);
  json["steps"] = settings.steps;
  json["times"] = Json::array();
  for (int i = 0; i <= settings.steps; ++i)
    json["times"].push_back(static_cast<double>(i) / settings.steps);
  json["velocity_range"] = kVelocityRange;
  return json;
}

}  // namespace fm
