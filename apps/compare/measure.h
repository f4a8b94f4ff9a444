// What is measured of a trained model beside its samples: its loss along t, and the time of
// sampling.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "models/dataset.h"
#include "models/flow_model.h"
#include "models/solver.h"

namespace fm {

constexpr int kTimeBins = 10;  // of t in [0, 1)

// The flow-matching loss of the first `count` images of `data` in each tenth of t: image i meets
// one noise and, in each bin, one t, drawn by (seed, i), so that models are compared on the same
// points. A model with classes gets the images' labels. `after` is called with the images done.
std::array<double, kTimeBins> loss_by_time(const Queue& queue, DType compute,
                                           const FlowModel& model, const DataSet& data,
                                           std::int64_t count, std::uint64_t seed,
                                           const std::function<void(std::int64_t)>& after = {});

// Milliseconds that a sampler takes from a request for `batch` images to the images in host memory,
// `runs` times after two that warm up.
std::vector<double> sampling_times(Sampler& sampler, const SampleSettings& settings, int batch,
                                   int runs);

}  // namespace fm
