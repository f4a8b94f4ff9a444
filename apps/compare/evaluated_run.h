// Evaluated runs, as their folders tell of them: what reports are made of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/compare/figures.h"
#include "engine/io/fields.h"

namespace fm {

// A run folder that fmcompare has evaluated.
struct EvaluatedRun {
  std::filesystem::path folder;
  std::string backbone, label;
  std::uint64_t seed;
  bool conditional;
  Json evaluation, summary, device;

  double of_summary(const char* field) const {
    return summary.contains(field) ? number(summary.at(field)) : std::nan("");
  }
  double of_summary(const char* group, const char* field) const {
    return summary.contains(group) ? number(summary.at(group).at(field)) : std::nan("");
  }
  double of_verdict(const char* field) const {
    return evaluation.contains("verdict") ? number(evaluation.at("verdict").at(field))
                                          : std::nan("");
  }
  bool failed() const { return !evaluation.at("failed").is_null(); }
  bool passes() const {
    return !failed() && evaluation.contains("verdict") &&
           evaluation.at("verdict").at("passes") == true;
  }
  // A resumed run's clock covers the steps since: the others are taken to have gone as fast.
  double wall_s() const {
    const double steps = of_summary("steps"), resumed = of_summary("resumed_at");
    return of_summary("wall_s") * steps / std::max(steps - resumed, 1.0);
  }
};

// Of the folders in folder/runs that hold an evaluation, by backbone and seed, class-conditional
// ones after the others. Throws Fault::data where there is none.
std::vector<EvaluatedRun> evaluated_runs(const std::filesystem::path& folder);

// {"steps", "epochs", "loss"}: a point an epoch, or, of a short run, means of neighbouring log
// rows.
Json loss_curve(const EvaluatedRun& run);
// The mean of curves with the same points; the first one where they differ.
Json mean_curve(const std::vector<Json>& curves);

// A file's bytes; empty where there is none.
std::string text_of(const std::filesystem::path& path);

}  // namespace fm
