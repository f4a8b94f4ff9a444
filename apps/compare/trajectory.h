// Trajectories from noise to digits as pictures: what the viewer of a report shows.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/io/fields.h"
#include "engine/io/png.h"
#include "models/solver.h"

namespace fm {

struct TrajectoryRequest {
  std::vector<int> labels;  // classes to draw, each from every noise; empty: unconditional
  int noises = 8;           // how many noise images; noise j is the same for every label and model
  std::uint64_t seed = 0;   // of the noise
  SampleSettings settings;
};

// Pictures without padding, a row a (label, noise), labels first. A column of `states` is an image
// after so many steps, noise first, as a picture shows it; a column of `velocities` is what led
// from that state to the next, [-kVelocityRange, kVelocityRange] as 0 to 255.
struct Trajectories {
  Image states, velocities;
};
constexpr double kVelocityRange = 3;  // of a pixel; data minus noise is rarely beyond

Trajectories record_trajectories(Sampler& sampler, const ModelConfig& model,
                                 const TrajectoryRequest& request);

// [{"label", "noise"}, ...], or [{"noise"}, ...] where there are no labels.
Json trajectory_rows(const TrajectoryRequest& request);
// What all sets of a viewer share: image, channels, solver, steps, times, velocity_range.
Json viewer_frame(const ModelConfig& model, const SampleSettings& settings);

}  // namespace fm
