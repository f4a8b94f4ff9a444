// What a backbone costs against the number of tokens: the study's claim that Mamba's advantage
// widens, tested.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/fields.h"

namespace fm {

struct SweepRequest {
  std::vector<std::string> backbones = {"mamba", "transformer", "hybrid"};
  std::vector<int> tokens = {49, 100, 144, 196, 400, 784, 1600, 3136};  // squares
  std::string preset = "auto";  // whose models: paper on CUDA, tiny on the CPU
  // Images a step are as many as make these tokens, at least one; 0: the preset's, at 196 tokens
  // or what its patch gives.
  int tokens_per_step = 0;
  int steps = 0;          // timed a row; 0: 20 on CUDA, 3 on the CPU
  int sample_steps = 10;  // Euler steps of the image whose latency is taken
  std::filesystem::path out = "runs/sweep";
  std::string device = "auto", dtype = "auto";
  int threads = 0;
};

// The side of an image and of its patches that give `tokens` tokens: 28 pixels where a patch
// divides them, else patches of 2. Throws Fault::usage where it is no square.
struct TokenShape {
  int image, patch;
};
TokenShape shape_for(int tokens);

// From which count on, up to the largest measured, `slower` takes at least `ratio` times what
// `faster` takes: between two counts by a straight line in the logarithms; the least count measured
// where it does so everywhere; null where it does not at the largest.
// rows: a sweep's; field: "step_ms" or "latency_ms".
Json crossover(const Json& rows, const std::string& faster, const std::string& slower,
               const std::string& field, double ratio);

// Times every backbone at every count on synthetic images; writes OUT/sweep.json, sweep.md and
// plots/sweep.svg (an OUT that is a comparison's folder gets it into its report). A row for which
// memory is short says so. Prints the table and the findings on stdout; returns the exit code.
int run_sweep(const SweepRequest& request);

}  // namespace fm
