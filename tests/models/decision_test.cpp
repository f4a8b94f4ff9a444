#include "models/decision.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/files.h"

namespace fm::test {
namespace {

const std::vector<Candidate> kPublished = {{"Pure Mamba", true, 0.086, 18, 3.8},
                                           {"Pure Transformer", false, 0.092, 21, 4.1},
                                           {"Hybrid", true, 0.080, 26, 4.5}};

Candidate candidate(const std::string& name, double loss, double step_ms, double memory = 4) {
  return {name, true, loss, step_ms, memory};
}

CandidateRuns runs(const std::string& name, const std::vector<double>& losses, double step_ms,
                   int failing = 0) {
  CandidateRuns c{name, {}};
  for (const double loss : losses) c.runs.push_back(candidate(name, loss, step_ms));
  for (int i = 0; i < failing; ++i) c.runs[static_cast<std::size_t>(i)].passes = false;
  return c;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("decision: the published table gives the published decision") {
    const Ruling ruling = decide(kPublished);
    CHECK(ruling.winner == 0);
    CHECK(ruling.standings ==
          std::vector<Standing>{Standing::winner, Standing::eliminated, Standing::slower});
    CHECK(ruling.sentence == "Pure Mamba wins; Pure Transformer eliminated; Hybrid skipped.");
    CHECK(ruling.reasons[1] == "Pure Transformer is eliminated: its samples fail the quality bar.");
    CHECK(ruling.reasons[2] ==
          "Hybrid is skipped: an edge of 7.0 % in loss does not justify 44.4 % more time a step.");
  }

  TEST_CASE("decision: the order of the candidates does not matter") {
    const std::vector<Candidate> turned = {kPublished[2], kPublished[0], kPublished[1]};
    CHECK(decide(turned).winner == 1);
    CHECK(decide(turned).standings ==
          std::vector<Standing>{Standing::slower, Standing::winner, Standing::eliminated});
  }

  TEST_CASE("decision: nobody passes") {
    std::vector<Candidate> candidates = kPublished;
    for (Candidate& c : candidates) c.passes = false;
    candidates[0].loss = std::nan("");  // of no interest then
    const Ruling ruling = decide(candidates);
    CHECK(ruling.winner == -1);
    for (const Standing standing : ruling.standings) CHECK(standing == Standing::eliminated);
    CHECK(ruling.sentence == "No winner: no backbone's samples pass the bar.");
  }

  TEST_CASE("decision: the only one to pass wins, however slow and however high its loss") {
    const Ruling ruling = decide(
        {{"a", false, 0.01, 1, 1}, {"b", true, 5, 1000, 80}, {"c", false, std::nan(""), 1, 1}});
    CHECK(ruling.winner == 1);
  }

  TEST_CASE("decision: quality goes before speed") {
    const Ruling ruling = decide({candidate("fast", 0.0881, 5), candidate("good", 0.080, 26)});
    CHECK(ruling.winner == 1);
    CHECK(ruling.standings[0] == Standing::worse);
  }

  TEST_CASE("decision: who fails the bar sets neither the best loss nor the fastest time") {
    const Ruling ruling = decide(
        {{"cheat", false, 0.01, 1, 1}, candidate("a", 0.100, 20), candidate("b", 0.099, 20.5)});
    CHECK(ruling.winner == 2);
    CHECK(ruling.standings[1] == Standing::higher_loss);
  }

  TEST_CASE("decision: who is out on quality does not set the fastest time") {
    CHECK(decide({candidate("fast", 0.2, 1), candidate("a", 0.1, 20), candidate("b", 0.105, 19.5)})
              .winner == 1);
  }

  TEST_CASE("decision: the ends of the ranges belong to them") {
    for (double loss : {0.1, 0.08, 0.3, 0.7}) {
      CHECK(decide({candidate("a", loss, 20), candidate("b", 1.1 * loss, 10)}).winner == 1);
      CHECK(decide({candidate("a", loss, 20), candidate("b", 1.1001 * loss, 10)}).winner == 0);
    }
    CHECK(decide({candidate("a", 0.08, 20), candidate("b", 0.088, 10)}).winner == 1);
    CHECK(decide({candidate("a", 0.10, 21), candidate("b", 0.11, 20)}).winner == 0);
    CHECK(decide({candidate("a", 0.10, 21.01), candidate("b", 0.11, 20)}).winner == 1);
  }

  TEST_CASE("decision: equal losses, the lower memory; equal memory, the first") {
    const Ruling ruling = decide(
        {candidate("a", 0.1, 20, 5), candidate("b", 0.1, 20.9, 4), candidate("c", 0.101, 20, 1)});
    CHECK(ruling.winner == 1);
    CHECK(ruling.standings ==
          std::vector<Standing>{Standing::more_memory, Standing::winner, Standing::higher_loss});
    CHECK(decide({candidate("a", 0.1, 20), candidate("b", 0.1, 20)}).winner == 0);
  }

  TEST_CASE("decision: the thresholds are parameters") {
    CHECK(decide(kPublished, {.loss_ratio = 1.05}).winner == 2);
    CHECK(decide(kPublished, {.time_ratio = 1.5}).winner == 2);
    CHECK(decide(kPublished, {.loss_ratio = 1, .time_ratio = 1}).winner == 2);
  }

  TEST_CASE("decision: figures that are none are refused") {
    expect_fault(Fault::usage, "there must be a candidate", [] { decide({}); });
    for (double bad : {std::nan(""), 0.0, -1.0, double(INFINITY)}) {
      expect_fault(Fault::usage, "positive numbers", [&] { decide({candidate("a", bad, 1)}); });
      expect_fault(Fault::usage, "positive numbers", [&] { decide({candidate("a", 1, bad)}); });
    }
    expect_fault(Fault::usage, "a has no run", [] { decide_over_seeds({{"a", {}}}); });
  }

  TEST_CASE("decision: seeds that agree are sure, and one seed says nothing of its certainty") {
    const SureRuling sure = decide_over_seeds({runs("mamba", {0.086, 0.087, 0.085}, 18),
                                               runs("transformer", {0.092, 0.09, 0.091}, 21, 3),
                                               runs("hybrid", {0.081, 0.08, 0.082}, 26)});
    CHECK(sure.ruling.winner == 0);
    CHECK(sure.same == 1);
    CHECK(sure.means[0].loss == doctest::Approx(0.086));
    CHECK(sure.sentence.find("100.0 % of 10000") != std::string::npos);

    std::vector<CandidateRuns> single;
    for (const Candidate& c : kPublished) single.push_back({c.name, {c}});
    const SureRuling published = decide_over_seeds(single);
    CHECK(published.ruling.winner == 0);
    CHECK(published.fewest_seeds == 1);
    CHECK(published.sentence.find("not known") != std::string::npos);
  }

  TEST_CASE("decision: the share of resamplings is that of the bootstrap") {
    // b wins where its mean is below a's: two runs, of which one is below and one above. Of its
    // four resamplings one is (low, low), two are mixed (0.1 against 0.1005), one (high, high).
    const SureRuling r =
        decide_over_seeds({runs("a", {0.1005, 0.1005}, 20), runs("b", {0.098, 0.102}, 20)});
    CHECK(r.ruling.winner == 1);
    CHECK(r.wins[1] == r.same);
    CHECK(std::fabs(r.same - 0.75) < 4.5 * std::sqrt(0.75 * 0.25 / 10000));
    CHECK(r.wins[0] + r.wins[1] + r.nobody == doctest::Approx(1));
    const SureRuling again =
        decide_over_seeds({runs("a", {0.1005, 0.1005}, 20), runs("b", {0.098, 0.102}, 20)});
    CHECK(again.same == r.same);
    const SureRuling other = decide_over_seeds(
        {runs("a", {0.1005, 0.1005}, 20), runs("b", {0.098, 0.102}, 20)}, {}, 10'000, 1);
    CHECK(other.same != r.same);
  }

  TEST_CASE("decision: a backbone passes where more than half of its runs do") {
    // Of three runs one fails: of 27 resamplings 7 hold two or three of it.
    const SureRuling r = decide_over_seeds({runs("a", {0.5, 0.1, 0.1}, 20, 1)});
    CHECK(r.ruling.winner == 0);
    CHECK(r.means[0].loss == doctest::Approx(0.1));  // of those that pass
    CHECK(std::fabs(r.nobody - 7 / 27.0) < 4.5 * std::sqrt(7.0 * 20 / 27 / 27 / 10000));
    CHECK(decide_over_seeds({runs("a", {0.1, 0.1}, 20, 1)}).ruling.winner == -1);
    // A run that was lost counts as one that fails.
    CandidateRuns lost = runs("a", {0.1, 0.1, 0.1}, 20, 1);
    lost.runs[0].loss = std::nan("");
    CHECK(decide_over_seeds({lost}).ruling.winner == 0);
  }
}

}  // namespace fm::test
