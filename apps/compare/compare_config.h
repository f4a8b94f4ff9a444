// What a comparison trains and how it looks at the results: presets, backbones, runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/train_config.h"
#include "models/solver.h"

namespace fm {

// How a trained run is looked at: the same for every run of a comparison.
struct EvaluationConfig {
  std::int64_t judged = 10'000;
  int steps = 10;
  std::string solver = "euler";
  std::uint64_t sample_seed = 0;
  std::int64_t loss_images = 10'000;
  std::vector<double> sweep_steps = {1, 2, 4, 5, 10, 20, 50};
  std::vector<std::string> sweep_solvers = {"euler", "midpoint", "heun", "rk4"};
  int sweep_evaluations = 200;
  std::int64_t sweep_judged = 1'000;
  std::vector<double> batches = {1, 2, 4, 8, 16, 32, 64, 128};
  int latency_runs = 20;
  int thorough_seeds = 1;
  std::int64_t nearest = 64;
  double cfg_scale = 2;
  int classifier_epochs = 12;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("judged", self.judged, "samples the judge sees; 1 000 or more");
    visit("steps", self.steps, "integration steps of the samples judged");
    visit("solver", self.solver, "their solver: euler, midpoint, heun or rk4");
    visit("sample_seed", self.sample_seed, "of the noise that all backbones start from");
    visit("loss_images", self.loss_images, "images of each split for the loss in ten bins of t");
    visit("sweep_steps", self.sweep_steps, "numbers of steps that quality is measured at");
    visit("sweep_solvers", self.sweep_solvers, "solvers that quality is measured with");
    visit("sweep_evaluations", self.sweep_evaluations, "most velocity evaluations a sample there");
    visit("sweep_judged", self.sweep_judged, "samples judged there");
    visit("batches", self.batches, "batches whose sampling is timed");
    visit("latency_runs", self.latency_runs, "times a batch's median is of");
    visit("thorough_seeds", self.thorough_seeds,
          "seeds whose runs get the sweep over solvers and the sampling times");
    visit("nearest", self.nearest, "samples whose nearest train images are looked for");
    visit("cfg_scale", self.cfg_scale, "guidance of the class-conditional runs' pictures");
    visit("classifier_epochs", self.classifier_epochs, "epochs of the judge's classifier");
  }
};

// Throws Fault::usage with a sentence that names the field and what would work.
void validate(const EvaluationConfig&);

// Settings of the solver for the samples that are judged.
SampleSettings judged_settings(const EvaluationConfig&);

// One backbone of a comparison.
struct Contender {
  std::string name;   // "mamba", or as given: "attention*2+mamba"
  std::string label;  // for people: "Pure Mamba"
  RunConfig config;   // of its runs, but for the seed and the classes
};

struct Comparison {
  std::string preset;
  std::vector<Contender> contenders;
  int seeds = 3;
  bool viewer = true;        // a class-conditional run a backbone
  double class_share = 0.4;  // of the others' steps that those are trained for
  EvaluationConfig evaluation;
};

// "paper", "quick" or "tiny": seeds, evaluation, and the contenders' configurations.
// backbones: "mamba", "transformer", "hybrid", or block kinds as in "attention*2+mamba".
// All contenders get the same schedule: where a preset's steps depend on the backbone, the fewest.
// Throws Fault::usage for what is no preset or no backbone, or a backbone given twice.
Comparison comparison_preset(const std::string& preset, const std::vector<std::string>& backbones);

std::string label_of(const std::string& backbone);
// A name as a part of a file's name.
std::string file_name_of(const std::string& backbone);

// One training run of a comparison.
struct PlannedRun {
  const Contender* contender;
  RunConfig config;
  std::string folder;  // its name in runs/
  bool conditional;
};

// Seed by seed, each backbone in turn, then the class-conditional runs (seed 0, as many classes as
// given). `only`: "BACKBONE:SEED" or "BACKBONE:classes" for one of them; empty: all. Throws
// Fault::usage where there is no such run.
std::vector<PlannedRun> planned_runs(const Comparison& comparison, int classes,
                                     std::int64_t steps_per_epoch, const std::string& only);

// Throws Fault::usage where the largest model has more than 1.10 times the parameters of the
// smallest, unless `allowed`. Returns a line for people.
std::string check_parameters(const Comparison& comparison, bool allowed);

}  // namespace fm
