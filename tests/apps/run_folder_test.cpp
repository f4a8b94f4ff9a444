// A run's folder on its own: the pointer, what is kept, what a resume drops.
#include "apps/run_folder.h"

#include "tests/support/files.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// A folder with checkpoints (empty files) of these steps, the last of them the latest.
RunFolder folder_with(const fs::path& root, const std::vector<int>& steps, int keep = 0) {
  const RunFolder folder(root);
  folder.open(RunFolder::Open::fresh);
  for (const int step : steps) {
    put(folder.checkpoint_path(static_cast<std::uint64_t>(step)), "");
    folder.checkpoint_written(static_cast<std::uint64_t>(step), keep);
  }
  return folder;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("run folder: the latest checkpoint is the pointer's, else the newest") {
    const TemporaryFolder place;
    const RunFolder folder = folder_with(place / "run", {3, 12, 7});
    CHECK(folder.latest_checkpoint() == folder.checkpoint_path(7));
    for (const char* pointer : {"step-00000099.safetensors\n", "../elsewhere\n", "\n", ""}) {
      put(place / "run/ckpt/latest", pointer);
      CHECK(folder.latest_checkpoint() == folder.checkpoint_path(12));
    }
    fs::remove(place / "run/ckpt/latest");
    CHECK(folder.latest_checkpoint() == folder.checkpoint_path(12));
    CHECK_FALSE(RunFolder(place / "none").latest_checkpoint());
  }

  TEST_CASE(
      "run folder: the last `keep` checkpoints up to the one written stay, and what is no "
      "checkpoint") {
    const TemporaryFolder place;
    const RunFolder folder = folder_with(place / "run", {1, 2, 3, 9});
    put(place / "run/ckpt/mine.safetensors", "");
    put(folder.checkpoint_path(4), "");
    folder.checkpoint_written(4, 2);  // 9 is of a branch that was left
    for (const auto& [step, stays] :
         {std::pair{1, false}, {2, false}, {3, true}, {4, true}, {9, true}})
      CHECK(fs::exists(folder.checkpoint_path(static_cast<std::uint64_t>(step))) == stays);
    CHECK(fs::exists(place / "run/ckpt/mine.safetensors"));
    CHECK(folder.latest_checkpoint() == folder.checkpoint_path(4));
  }

  TEST_CASE("run folder: trim drops later rows, torn rows and later epochs") {
    const TemporaryFolder place;
    const RunFolder folder = folder_with(place / "run", {});
    folder.trim(1, 1);  // no files yet
    for (const std::uint64_t step : {5, 10, 15}) folder.append_log({{"step", step}});
    for (const char* row : {"1,8,0.5", "2,16,0.4", "10,80,0.3"})
      folder.append_metrics("epoch,step,loss", row);
    put(place / "run/log.jsonl", get(place / "run/log.jsonl") + "{\"step\": 1");
    folder.trim(10, 1);
    CHECK(get(place / "run/log.jsonl") == "{\"step\":5}\n{\"step\":10}\n");
    CHECK(get(place / "run/metrics.csv") == "epoch,step,loss\n1,8,0.5\n");
    folder.append_metrics("epoch,step,loss", "2,16,0.6");
    folder.trim(0, 0);
    CHECK(get(place / "run/log.jsonl").empty());
    CHECK(get(place / "run/metrics.csv") == "epoch,step,loss\n");
  }

  TEST_CASE("run folder: opening it") {
    const TemporaryFolder place;
    const RunFolder folder = folder_with(place / "run", {1});
    put(place / "run/ckpt/latest.tmp.2147483646", "left by a process that is gone");
    expect_fault(Fault::usage, "is not empty", [&] { folder.open(RunFolder::Open::fresh); });
    folder.open(RunFolder::Open::resume);
    CHECK_FALSE(fs::exists(place / "run/ckpt/latest.tmp.2147483646"));
    CHECK(fs::exists(folder.checkpoint_path(1)));
    put(place / "run/other", "");
    folder.open(RunFolder::Open::overwrite);
    CHECK_FALSE(folder.latest_checkpoint());
    CHECK(fs::exists(place / "run/other"));
    put(place / "file", "");
    for (const auto how :
         {RunFolder::Open::fresh, RunFolder::Open::overwrite, RunFolder::Open::resume})
      expect_fault(Fault::usage, "must be a folder", [&] { RunFolder(place / "file").check(how); });
  }

  TEST_CASE("run folder: a checkpoint's run") {
    const TemporaryFolder place;
    const RunFolder folder = folder_with(place / "run", {1});
    CHECK(resolve_checkpoint(place / "run") == folder.checkpoint_path(1));
    CHECK(resolve_checkpoint(place / "file") == place / "file");
    expect_fault(Fault::data, "holds no checkpoint", [&] { resolve_checkpoint(place.path()); });
    CHECK(run_of(folder.checkpoint_path(1)) == place / "run");
    CHECK(run_of("ckpt/a.safetensors") == ".");
    CHECK(run_of("a.safetensors").empty());
    CHECK(run_of("elsewhere/a.safetensors").empty());
  }
}

}  // namespace fm::test
