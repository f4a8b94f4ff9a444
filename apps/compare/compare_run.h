// A comparison, run by run: trains what is not trained yet, looks at it, and writes the report.
//
//   DIR/compare.json classifier.safetensors runs/<backbone>-s<seed>/ runs/<backbone>-classes/
//       report.json report.md report.html plots/ grids/
#pragma once

#include <filesystem>
#include <string>

#include "apps/compare/compare_config.h"

namespace fm {

struct CompareRequest {
  Comparison comparison;  // resolved but for what depends on the data and the device
  std::filesystem::path out;
  std::string only;  // "BACKBONE:SEED", "BACKBONE:classes"; empty: all
  std::string data = "auto";
  bool download = false;
  bool overwrite = false;      // runs that are there are done anew
  bool again = false;          // finished runs are looked at anew
  bool allow_unequal = false;  // parameters that differ by more than 10 %
  std::string device = "auto";
  int threads = 0;
};

// Returns the exit code (0, or 130 / 143 where a signal stopped a training that was saved). A run
// that is finished is not repeated, a stopped one goes on. A run whose loss leaves the finite
// numbers counts as failed and the others go on. Prints the decision and the paths on stdout.
int run_comparison(const CompareRequest& request);

// What would be done: configurations, parameters, FLOPs; on stdout.
void describe_comparison(const CompareRequest& request);

}  // namespace fm
