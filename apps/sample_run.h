// Sampling from a checkpoint, and what a checkpoint holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "models/solver.h"

namespace fm {

struct SampleOptions {
  std::vector<std::string> checkpoints;  // files or run folders; several for a viewer alone
  std::string weights = "auto", solver = "euler", label, noise, config;
  std::int64_t count = 64;
  int steps = 10;
  std::uint64_t seed = 0;
  double cfg_scale = 1;
  std::string out = "samples.png", save_tensor, trajectory, viewer;
  int viewer_noises = 4;
  std::string device = "auto", dtype = "auto";
  int threads = 0, batch = 256;
};

// A checkpoint's model, ready to sample.
struct LoadedModel {
  LoadedModel(const std::string& checkpoint, const SampleOptions& options, const Queue& queue,
              DType compute);

  SafetensorsFile file;
  FlowModel model;
  Context context;  // of the weights' memory
  Weights weights;
};

// Steps, solver and guidance, checked.
SampleSettings sample_settings(const SampleOptions& options);
// One of the classes by its number; Fault::usage for another text.
int label_named(const std::string& label, int classes);

// Writes what the options ask for and prints the paths on stdout. Throws Error; Interrupted on a
// signal.
void run_sampling(const SampleOptions& options);

// Configuration, parameters, training state and tensors, on stdout.
void print_checkpoint_info(const SampleOptions& options);

}  // namespace fm
