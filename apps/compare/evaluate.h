// Looking at a trained run: samples and their judgement, losses along t, quality against steps,
// times, nearest train images, trajectories. All of it lands in the run's folder:
//
//   evaluation/evaluation.json grid.png nearest.png states.png velocities.png
//
// evaluation.json is written last; with the run's other files, without its checkpoints, it is all
// that a report needs.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "apps/compare/compare_config.h"
#include "apps/compare/judge_bench.h"

namespace fm {

struct EvaluationRequest {
  std::filesystem::path folder;  // of the run
  std::string backbone, label, preset;
  std::uint64_t seed = 0;
  bool conditional = false;
  bool thorough = false;  // the sweep over solvers and the sampling times, too
  EvaluationConfig config;
  int threads = 0;
};

// Of the run's latest checkpoint, with its average of the weights where it has one. Throws
// Interrupted on a signal, with nothing written but pictures.
void evaluate_run(const EvaluationRequest& request, JudgeBench& bench);

// For a run whose training left the finite numbers: an evaluation that says so.
void write_failed_evaluation(const EvaluationRequest& request, const std::string& why);

// What was written; nothing where there is none yet.
std::optional<Json> read_evaluation(const std::filesystem::path& folder);

}  // namespace fm
