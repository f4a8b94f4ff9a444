#include "models/decision.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace fm {
namespace {

// Both ends of a ratio are decimal fractions, which binary ones miss by a rounding: 22 ms is within
// 1.10 times 20 ms, although 1.10 * 20.0 need not be 22.0.
bool within(double value, double ratio, double best) {
  return value <= ratio * best * (1 + 1e-12);
}

std::string format(const char* pattern, double a, double b = 0) {
  char text[96];
  std::snprintf(text, sizeof text, pattern, a, b);
  return text;
}

double percent_over(double value, double best) {
  return 100 * (value / best - 1);
}

void check_figures(const Candidate& c) {
  for (const double figure : {c.loss, c.step_ms, c.peak_memory})
    FM_CHECK(std::isfinite(figure) && figure > 0,
             "[decision] loss, time and memory of a backbone that passes must be positive numbers, "
             "got ",
             c.loss, ", ", c.step_ms, ", ", c.peak_memory, " (", c.name, ")");
}

std::string reason_of(const Candidate& c, Standing standing, const Candidate& winner,
                      double best_loss, const DecisionRule& rule) {
  switch (standing) {
    case Standing::winner:
      return c.name + " wins: its samples pass, " +
             format("its loss of %.4g is within %.4g times the best, ", c.loss, rule.loss_ratio) +
             format("and at %.4g ms a step nothing of that quality is faster by more than %.4g %%.",
                    c.step_ms, 100 * (rule.time_ratio - 1));
    case Standing::eliminated: return c.name + " is eliminated: its samples fail the quality bar.";
    case Standing::worse:
      return c.name + " is out on quality: " +
             format("its loss of %.4g is %.1f %% above the best.", c.loss,
                    percent_over(c.loss, best_loss));
    case Standing::slower: {
      const double edge = -percent_over(c.loss, winner.loss);
      return c.name + " is skipped: " +
             (edge > 0 ? format("an edge of %.1f %% in loss does not justify ", edge)
                       : std::string("with no edge in loss it costs ")) +
             format("%.1f %% more time a step.", percent_over(c.step_ms, winner.step_ms));
    }
    case Standing::higher_loss:
      return c.name + " is second to " + winner.name + ": " +
             format("as fast, with a loss of %.4g against %.4g.", c.loss, winner.loss);
    case Standing::more_memory:
      return c.name + " is second to " + winner.name +
             format(": the same loss, with %.4g against %.4g of memory.", c.peak_memory,
                    winner.peak_memory);
  }
  return {};
}

double mean_of(const std::vector<const Candidate*>& runs, double Candidate::*figure) {
  double sum = 0;
  for (const Candidate* run : runs) sum += run->*figure;
  return sum / static_cast<double>(runs.size());
}

// A backbone that passes is judged by those of its runs that do: a lost seed has no loss to speak
// of, and must not hide what the others show.
Candidate mean_candidate(const std::string& name, const std::vector<const Candidate*>& runs) {
  std::vector<const Candidate*> passing;
  for (const Candidate* run : runs)
    if (run->passes) passing.push_back(run);
  const bool passes = 2 * passing.size() > runs.size();
  const std::vector<const Candidate*>& of = passes ? passing : runs;
  return {name, passes, mean_of(of, &Candidate::loss), mean_of(of, &Candidate::step_ms),
          mean_of(of, &Candidate::peak_memory)};
}

// The winner alone, as decide() finds it, or -1.
int winner_of(const std::vector<Candidate>& candidates, const DecisionRule& rule,
              std::vector<Standing>& standings) {
  double best_loss = std::numeric_limits<double>::infinity(), fastest = best_loss;
  standings.assign(candidates.size(), Standing::eliminated);
  for (const Candidate& c : candidates)
    if (c.passes) best_loss = std::min(best_loss, c.loss);
  for (const Candidate& c : candidates)
    if (c.passes && within(c.loss, rule.loss_ratio, best_loss))
      fastest = std::min(fastest, c.step_ms);
  int winner = -1;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& c = candidates[i];
    if (!c.passes) continue;
    if (!within(c.loss, rule.loss_ratio, best_loss)) {
      standings[i] = Standing::worse;
    } else if (!within(c.step_ms, rule.time_ratio, fastest)) {
      standings[i] = Standing::slower;
    } else {
      standings[i] = Standing::higher_loss;  // for now
      if (winner < 0) winner = static_cast<int>(i);
      const Candidate& leader = candidates[static_cast<std::size_t>(winner)];
      if (c.loss < leader.loss || (c.loss == leader.loss && c.peak_memory < leader.peak_memory))
        winner = static_cast<int>(i);
    }
  }
  if (winner < 0) return winner;
  for (std::size_t i = 0; i < candidates.size(); ++i)
    if (standings[i] == Standing::higher_loss &&
        candidates[i].loss == candidates[static_cast<std::size_t>(winner)].loss)
      standings[i] = Standing::more_memory;
  standings[static_cast<std::size_t>(winner)] = Standing::winner;
  return winner;
}

std::string certainty(const SureRuling& r, int resamplings) {
  if (r.fewest_seeds < 2)
    return "A backbone has one seed alone, so how far seeds differ is not known.";
  return format("Resampling the seeds gives the same decision in %.1f %% of %.0f cases.",
                100 * r.same, resamplings);
}

}  // namespace

Ruling decide(const std::vector<Candidate>& candidates, const DecisionRule& rule) {
  FM_CHECK(!candidates.empty(), "[decision] there must be a candidate");
  double best_loss = std::numeric_limits<double>::infinity();
  for (const Candidate& c : candidates) {
    if (!c.passes) continue;
    check_figures(c);
    best_loss = std::min(best_loss, c.loss);
  }
  Ruling ruling{};
  ruling.winner = winner_of(candidates, rule, ruling.standings);
  const bool won = ruling.winner >= 0;
  const Candidate& winner = candidates[won ? static_cast<std::size_t>(ruling.winner) : 0];
  ruling.sentence = won ? winner.name + " wins" : "No winner: no backbone's samples pass the bar";
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    ruling.reasons.push_back(
        reason_of(candidates[i], ruling.standings[i], winner, best_loss, rule));
    if (!won || ruling.standings[i] == Standing::winner) continue;
    const bool eliminated = ruling.standings[i] == Standing::eliminated;
    ruling.sentence += "; " + candidates[i].name + (eliminated ? " eliminated" : " skipped");
  }
  ruling.sentence += ".";
  return ruling;
}

SureRuling decide_over_seeds(const std::vector<CandidateRuns>& candidates, const DecisionRule& rule,
                             int resamplings, std::uint64_t seed) {
  SureRuling result{};
  result.fewest_seeds = std::numeric_limits<int>::max();
  for (const CandidateRuns& c : candidates) {
    FM_CHECK(!c.runs.empty(), "[decision] ", c.name, " has no run");
    std::vector<const Candidate*> runs;
    for (const Candidate& run : c.runs) {
      if (run.passes) check_figures(run);
      runs.push_back(&run);
    }
    result.means.push_back(mean_candidate(c.name, runs));
    result.fewest_seeds = std::min(result.fewest_seeds, static_cast<int>(c.runs.size()));
  }
  result.ruling = decide(result.means, rule);

  std::vector<int> wins(candidates.size());
  int nobody = 0;
  std::vector<Candidate> drawn = result.means;
  std::vector<Standing> standings;
  for (int i = 0; i < resamplings; ++i) {
    for (std::size_t k = 0; k < candidates.size(); ++k) {
      const std::vector<Candidate>& from = candidates[k].runs;
      std::vector<const Candidate*> runs;
      for (std::size_t j = 0; j < from.size(); ++j) {
        const RandomKey key{seed, stream::resampling, static_cast<std::uint32_t>(i),
                            static_cast<std::uint32_t>(k)};
        const std::uint64_t word = random4(key, static_cast<std::uint32_t>(j)).x0;
        runs.push_back(&from[static_cast<std::size_t>(word * from.size() >> 32)]);
      }
      drawn[k] = mean_candidate(candidates[k].name, runs);
    }
    const int winner = winner_of(drawn, rule, standings);
    if (winner < 0) ++nobody;
    else ++wins[static_cast<std::size_t>(winner)];
  }
  const auto share = [&](int count) {
    return static_cast<double>(count) / std::max(resamplings, 1);
  };
  for (const int count : wins) result.wins.push_back(share(count));
  result.nobody = share(nobody);
  const int winner = result.ruling.winner;
  result.same = winner < 0 ? result.nobody : result.wins[static_cast<std::size_t>(winner)];
  result.sentence = result.ruling.sentence + " " + certainty(result, resamplings);
  return result;
}

}  // namespace fm
