// Sampling from a checkpoint, and what a checkpoint holds.
#pragma once

#include <cstdint>
#include <string>

namespace fm {

struct SampleOptions {
  std::string checkpoint;  // a file or a run folder
  std::string weights = "auto", solver = "euler", label, noise, config;
  std::int64_t count = 64;
  int steps = 10;
  std::uint64_t seed = 0;
  double cfg_scale = 1;
  std::string out = "samples.png", save_tensor, trajectory;
  std::string device = "auto", dtype = "auto";
  int threads = 0, batch = 256;
};

// Writes what the options ask for and prints the paths on stdout. Throws Error; Interrupted on a
// signal.
void run_sampling(const SampleOptions& options);

// Configuration, parameters, training state and tensors, on stdout.
void print_checkpoint_info(const SampleOptions& options);

}  // namespace fm
