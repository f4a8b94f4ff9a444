// What a profiler sees of a run: NVTX ranges, and the window of --profile.
#include "apps/profile_window.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

constexpr int kSteps = 6, kBlocks = 2;  // of the small model

Arguments run_of(const std::string& set, const fs::path& out, const Arguments& more) {
  return small_run(set, out, Arguments{"--max-steps", std::to_string(kSteps), "--no-graph"} + more);
}

#if FM_NVTX
// Ranges by path, as tests/support/nvtx_counter.cpp counts them.
std::map<std::string, int> ranges(const Arguments& arguments) {
  const TemporaryFolder folder;
  const std::string file = (folder / "counts").string();
  const Outcome outcome = run(
      "fmtrain", arguments, {{"NVTX_INJECTION64_PATH", FM_NVTX_COUNTER}, {"FM_NVTX_COUNTS", file}});
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  std::map<std::string, int> counts;
  std::ifstream in(file);
  REQUIRE(in.good());
  std::string path;
  for (int count = 0; in >> count >> path;) counts[path] = count;
  return counts;
}

// `steps` whole steps below `prefix`, and nothing else there that begins with "step".
void expect_steps(const std::map<std::string, int>& counts, const std::string& prefix, int steps) {
  const std::map<std::string, int> want = {
      {"step", steps},          {"step/data", steps},
      {"step/forward", steps},  {"step/forward/block", steps * kBlocks},
      {"step/backward", steps}, {"step/optimizer", steps},
  };
  for (const auto& [path, count] : want) {
    INFO(prefix, path);
    REQUIRE(counts.count(prefix + path) == 1);
    CHECK(counts.at(prefix + path) == count);
  }
  for (const auto& [path, count] : counts) {
    INFO(path, " ", count);
    if (path.starts_with(prefix + "step")) CHECK(want.count(path.substr(prefix.size())) == 1);
  }
}
#endif

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("profile: NVTX ranges of every step and of sampling") {
#if FM_NVTX
    const TemporaryFolder folder;
    const auto counts = ranges(run_of(put_set(folder / "set"), folder / "run",
                                      {"--sample-every", std::to_string(kSteps)}));
    expect_steps(counts, "", kSteps);
    CHECK(counts.at("plan") == 2);  // of training and of sampling
    CHECK(counts.at("sample") == 1);
    CHECK(counts.at("sample/forward") == 10);  // Euler steps
    CHECK(counts.at("sample/forward/block") == 10 * kBlocks);
    CHECK(counts.at("unbalanced") == 0);
    CHECK(counts.count("profile") == 0);
#else
    MESSAGE("skipped: this build has no NVTX ranges (no nvtx3/nvtx3.hpp, or FM_NVTX=OFF)");
#endif
  }

  TEST_CASE("profile: the window holds the steps it was asked for") {
#if FM_NVTX
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto middle = ranges(run_of(set, folder / "a", {"--profile", "3:2"}));
    CHECK(middle.at("profile") == 1);
    expect_steps(middle, "profile/", 2);
    expect_steps(middle, "", kSteps - 2);
    CHECK(middle.at("unbalanced") == 0);
    const auto last = ranges(run_of(set, folder / "b", {"--profile", "5:1"}));
    expect_steps(last, "profile/", 1);
    expect_steps(last, "", kSteps - 1);
    const auto all = ranges(run_of(set, folder / "c", {"--profile", "0:6"}));
    expect_steps(all, "profile/", kSteps);
    CHECK(all.count("step") == 0);
#else
    MESSAGE("skipped: this build has no NVTX ranges (no nvtx3/nvtx3.hpp, or FM_NVTX=OFF)");
#endif
  }

  TEST_CASE("profile: the window does not change a bit") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    train(run_of(set, folder / "plain", {}));
    train(run_of(set, folder / "profiled", {"--profile", "2:3"}));
    expect_same_checkpoint(checkpoint(folder / "plain", kSteps),
                           checkpoint(folder / "profiled", kSteps));
    CHECK(log_rows(folder / "plain").back()["loss"] ==
          log_rows(folder / "profiled").back()["loss"]);
  }

  TEST_CASE("profile: what is no window is refused, and leaves no folder") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    for (const char* text : {"3", "3:", ":2", "3:0", "-1:2", "3:-2", "3:2:1", "a:b", "3:2x",
                             "3.5:1", "18446744073709551615:1"}) {
      INFO(text);
      expect_fault(Fault::usage, "profile must be START:STEPS", [&] { profile_steps(text); });
    }
    CHECK(profile_steps("").count == 0);
    CHECK(profile_steps("100:5").start == 100);
    CHECK(profile_steps("100:5").count == 5);
    expect_end(2, "[train] profile must be START:STEPS", "fmtrain",
               run_of(set, folder / "run", {"--profile", "3:"}));
    expect_end(2, "[train] profile must lie within the run's 6 steps, got steps 5 to 7", "fmtrain",
               run_of(set, folder / "run", {"--profile", "5:2"}));
    CHECK_FALSE(fs::exists(folder / "run"));
  }

  TEST_CASE("profile: a resumed run cannot profile what is done") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    train(run_of(set, folder / "run", {}));
    const Arguments resume = {"--resume",    "latest", "--out",    (folder / "run").string(),
                              "--max-steps", "9",      "--device", "cpu"};
    expect_end(2, "[train] profile must begin after the resumed step 6, got 4", "fmtrain",
               resume + Arguments{"--profile", "4:3"});
    train(resume + Arguments{"--profile", "7:1"});
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("profile: CUDA, the window runs without the graph and does not change a bit") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto go = [&](const char* name, const Arguments& more) {
      train(small_run(set, folder / name,
                      Arguments{"--device", "cuda", "--max-steps", std::to_string(kSteps)} + more));
      return checkpoint(folder / name, kSteps);
    };
    const fs::path plain = go("plain", {});
    expect_same_checkpoint(plain, go("middle", {"--profile", "3:2"}));
    expect_same_checkpoint(plain, go("start", {"--profile", "0:2"}));
    expect_same_checkpoint(plain, go("end", {"--profile", "5:1"}));
#if FM_NVTX
    // Outside the window steps are replays, but for the first (which warms up) and the second
    // (which is captured).
    const auto counts = ranges(
        small_run(set, folder / "ranges",
                  {"--device", "cuda", "--max-steps", std::to_string(kSteps), "--profile", "3:2"}));
    expect_steps(counts, "profile/", 2);
    expect_steps(counts, "", 2);
#endif
  }
}
#endif

}  // namespace fm::test
