// A training run: the loop around a Trainer that logs, saves, samples, resumes and stops.
#pragma once

#include <filesystem>
#include <string>

#include "apps/profile_window.h"
#include "apps/run_folder.h"
#include "apps/train_config.h"

namespace fm {

constexpr int kSampleCount = 64;  // of a run's sample grids

struct TrainRequest {
  RunConfig config;  // resolved but for "auto"s
  bool download = false;
  std::filesystem::path out;
  bool overwrite = false;
  std::string resume;                // as asked for: empty, "latest", a checkpoint or a run
  std::filesystem::path checkpoint;  // what that is; empty: there is none
  std::string device = "auto";
  int threads = 0;
  bool graph = true;
  ProfileSteps profile;
};

// Trains to the end or to a signal; returns the exit code (0, 130, 143). Throws Error on anything
// else; a loss that is not finite is Fault::not_finite, and the last good checkpoint stays.
int run_training(const TrainRequest& request);

// What a run would do: resolved configuration, parameters, memory, loss bounds; on stdout.
void describe_training(const TrainRequest& request);

}  // namespace fm
