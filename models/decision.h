// The decision rule of the study, fixed in advance: which backbone wins.
//
//   1. A backbone whose samples fail the quality bar is eliminated, whatever its loss or speed.
//   2. Equivalent in quality: those that pass and whose loss is at most 1.10 times the best passing
//      loss.
//   3. Equivalent in speed: those of step 2 whose time a step is at most 1.05 times the fastest of
//      them.
//   4. Among those the lowest loss wins; equal losses, the lower peak memory.
// Pure functions of their arguments.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fm {

struct DecisionRule {
  double loss_ratio = 1.10;  // equivalent in quality up to this times the best loss
  double time_ratio = 1.05;  // equivalent in speed up to this times the fastest
};

// One backbone, measured: by one run, or by the mean over several.
struct Candidate {
  std::string name;
  bool passes;         // the quality bar
  double loss;         // of the last epoch
  double step_ms;      // over the last 100 steps
  double peak_memory;  // in any one unit
};

enum class Standing : std::uint8_t {
  winner,
  eliminated,   // by the quality bar
  worse,        // its loss is not equivalent
  slower,       // its edge, if any, does not justify its cost
  higher_loss,  // equivalent in quality and speed, not the best of those
  more_memory,  // the same loss, more memory (the later of two that are equal in all)
};

struct Ruling {
  int winner;                        // number of the candidate; -1: none passes
  std::vector<Standing> standings;   // one a candidate
  std::vector<std::string> reasons;  // one a candidate: "Hybrid is skipped: ..."
  std::string sentence;              // the decision
};

// Throws Fault::usage where a candidate that passes has a figure that is not a positive number.
Ruling decide(const std::vector<Candidate>& candidates, const DecisionRule& rule = {});

// One backbone's runs, a seed each.
struct CandidateRuns {
  std::string name;
  std::vector<Candidate> runs;  // their names do not count; at least one
};

struct SureRuling {
  Ruling ruling;  // on the means over seeds; a backbone passes where more than half of its runs do
  std::vector<Candidate> means;  // of a backbone that passes, over those of its runs that do
  // What resampling the seeds (with replacement, each backbone on its own) would have decided: the
  // share of resamplings that each candidate wins, and that nobody does.
  std::vector<double> wins;
  double nobody = 0;
  double same = 0;   // the share that gives the same winner: how sure the decision is
  int fewest_seeds;  // of all candidates; with one seed there is no spread to speak of
  std::string sentence;
};

// The bootstrap (Efron 1979), `resamplings` times, drawn by `seed`.
SureRuling decide_over_seeds(const std::vector<CandidateRuns>& candidates,
                             const DecisionRule& rule = {}, int resamplings = 10'000,
                             std::uint64_t seed = 0);

}  // namespace fm
