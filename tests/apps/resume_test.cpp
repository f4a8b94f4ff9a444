// Going on where a run stopped: the same bits, whatever stopped it.
#include <algorithm>
#include <numeric>

#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

std::vector<int> one_to(int last) {
  std::vector<int> steps(static_cast<std::size_t>(last));
  std::iota(steps.begin(), steps.end(), 1);
  return steps;
}

// Log rows and metrics without the times, which differ.
std::vector<Json> timeless_rows(const fs::path& run) {
  std::vector<Json> rows = log_rows(run);
  for (Json& row : rows) row.erase("step_ms"), row.erase("images_per_s");
  return rows;
}

std::vector<std::string> timeless_metrics(const fs::path& run) {
  std::vector<std::string> lines;
  std::ifstream in(run / "metrics.csv");
  for (std::string line; std::getline(in, line);) {
    std::size_t end = 0;  // of the fourth column
    for (int i = 0; i < 4; ++i) end = line.find(',', end + 1);
    lines.push_back(line.substr(0, end));
  }
  return lines;
}

// A checkpoint with every value of the tensors whose name ends in `ending` replaced.
void edit(const fs::path& from, const fs::path& to, const std::string& ending, float value) {
  const SafetensorsFile file(from);
  std::vector<std::vector<float>> values;
  std::vector<TensorToStore> tensors;
  for (const StoredTensor& tensor : file.tensors()) {
    values.push_back(file.read<float>(tensor.name));
    if (tensor.name.ends_with(ending)) std::fill(values.back().begin(), values.back().end(), value);
    tensors.push_back({tensor.name, DType::f32, tensor.shape, values.back().data()});
  }
  write_safetensors(to, tensors, file.metadata());
}

// Goes on from a run's latest checkpoint, with its settings. (Where there is none a whole study
// would begin.)
Outcome go_on(const fs::path& run, const Arguments& more) {
  REQUIRE(fs::exists(run / "ckpt/latest"));
  return train(Arguments{"--out", run.string(), "--resume", "latest", "--device", "cpu"} + more);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("resume: half and half gives the bits, rows and metrics of a straight run") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    // 13 is in the middle of the second epoch.
    for (const Arguments& kind : {Arguments{}, Arguments{"--ema-decay", "0.9", "--classes", "10"},
                                  Arguments{"--dtype", "fp64"}}) {
      const fs::path straight = folder / "straight", halves = folder / "halves";
      const Arguments settings =
          kind + Arguments{"--log-every", "1", "--lr", "0.01", "--keep-last", "0"};
      train(small_run(set, straight, settings + Arguments{"--max-steps", "20", "--overwrite"}));
      train(small_run(set, halves, settings + Arguments{"--max-steps", "13", "--overwrite"}));
      // A resume needs none of the run's settings again; limits and logging may change.
      const Outcome outcome =
          go_on(halves, {"--max-steps", "20", "--threads", "2", "--ckpt-every", "4"});
      CHECK(contains(outcome.err, "step-00000013.safetensors at step 13"));
      expect_same_checkpoint(checkpoint(straight, 20), checkpoint(halves, 20));
      CHECK(timeless_rows(straight) == timeless_rows(halves));
      CHECK(timeless_metrics(straight) == timeless_metrics(halves));
      CHECK(fs::exists(checkpoint(halves, 16)));
      CHECK(json_of(halves / "summary.json")["resumed_at"] == 13);
      CHECK(json_of(halves / "summary.json")["final_epoch_loss"] ==
            json_of(straight / "summary.json")["final_epoch_loss"]);
    }
  }

  TEST_CASE("resume: killed at any time, latest goes on to the same bits") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const fs::path straight = folder / "straight", killed = folder / "killed";
    const Arguments settings = {"--max-steps", "400", "--ckpt-every", "7",   "--log-every", "1",
                                "--keep-last", "2",   "--lr",         "0.01"};
    train(small_run(set, straight, settings));
    int kills = 0;
    std::size_t rows = 0;
    for (int attempt = 0; attempt < 12; ++attempt) {
      Program program("fmtrain",
                      small_run(set, killed, settings + Arguments{"--resume", "latest"}));
      // Some rows later than the last time, at no particular moment.
      wait_until([&] { return program.ended() || rows_so_far(killed) >= rows + 20; });
      std::this_thread::sleep_for(std::chrono::microseconds(attempt * 700));
      program.signal(SIGKILL);
      kills += program.wait().code == 128 + SIGKILL;
      rows = rows_so_far(killed);
    }
    CHECK(kills >= 5);
    train(small_run(set, killed, settings + Arguments{"--resume", "latest"}));
    expect_same_checkpoint(checkpoint(straight, 400), checkpoint(killed, 400));
    CHECK(logged_steps(killed) == one_to(400));
    CHECK(timeless_rows(straight) == timeless_rows(killed));
    CHECK(timeless_metrics(straight) == timeless_metrics(killed));
    for (const auto& entry : fs::recursive_directory_iterator(killed))
      CHECK_FALSE(contains(entry.path().filename().string(), ".tmp."));
  }

  TEST_CASE("resume: latest with nothing there starts at step 0 and says so") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const Arguments latest = {"--max-steps", "3", "--log-every", "1", "--resume", "latest"};
    const Outcome outcome = train(small_run(set, folder / "run", latest));
    CHECK(contains(outcome.err,
                   "no checkpoint in " + (folder / "run").string() + ": starting at step 0"));
    CHECK(logged_steps(folder / "run") == one_to(3));
    // Rows of a run that ended before its first checkpoint are not repeated.
    fs::remove_all(folder / "run/ckpt");
    train(small_run(set, folder / "run", latest));
    CHECK(logged_steps(folder / "run") == one_to(3));
    expect_end(3, "holds no checkpoint", "fmtrain",
               small_run(set, folder / "new", {"--resume", (folder / "set").string()}));
    CHECK_FALSE(fs::exists(folder / "new"));
  }

  TEST_CASE("resume: a run that is done stays as it is") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    train(small_run(set, folder / "run", {"--max-steps", "3"}));
    const std::string summary = get(folder / "run/summary.json");
    const Outcome outcome = train({"--resume", (folder / "run").string(), "--device", "cpu"});
    CHECK(contains(outcome.err, "nothing to do: step 3 of 3 is done"));
    CHECK(get(folder / "run/summary.json") == summary);
    CHECK(logged_steps(folder / "run") == std::vector<int>{3});
  }

  TEST_CASE("resume: another model, data set, seed, batch, dtype or average is refused") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set"), other = put_set(folder / "other", 48);
    train(small_run(set, folder / "run", {"--max-steps", "2"}));
    const std::string log = get(folder / "run/log.jsonl"), config = get(folder / "run/config.json");
    const auto refuse = [&](const std::string& phrase, const Arguments& more) {
      expect_end(
          2, "[resume] " + phrase + " must be the checkpoint's", "fmtrain",
          Arguments{"--out", (folder / "run").string(), "--resume", "latest", "--device", "cpu"} +
              more);
    };
    refuse("the model", {"--d-model", "32"});
    refuse("the model", {"--backbone", "transformer"});
    refuse("the model", {"--ssm-norm", "false"});
    refuse("the data set", {"--data", other});
    refuse("the seed", {"--seed", "1"});
    refuse("the batch", {"--batch", "16"});
    refuse("the dtype", {"--dtype", "fp64"});
    refuse("the average of the weights (--ema-decay)", {"--ema-decay", "0.5"});
    CHECK(get(folder / "run/log.jsonl") == log);
    CHECK(get(folder / "run/config.json") == config);
    // The same data set in another place is no other data set.
    fs::rename(folder / "set", folder / "moved");
    go_on(folder / "run", {"--max-steps", "3", "--data", (folder / "moved").string() + "/"});
  }

  TEST_CASE("resume: an earlier checkpoint drops the later rows and becomes the latest") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const fs::path run = folder / "run";
    train(small_run(
        set, run,
        {"--max-steps", "18", "--ckpt-every", "3", "--log-every", "1", "--keep-last", "0"}));
    const std::string before = get(checkpoint(run, 12));
    // Without --out a resumed run stays in its own folder.
    train({"--resume", checkpoint(run, 6).string(), "--max-steps", "12", "--keep-last", "2",
           "--device", "cpu"});
    CHECK(logged_steps(run) == one_to(12));
    CHECK(get(run / "ckpt/latest") == "step-00000012.safetensors\n");
    CHECK(fs::exists(checkpoint(run, 9)));
    CHECK_FALSE(fs::exists(checkpoint(run, 6)));
    expect_same_checkpoint(checkpoint(run, 12), put(folder / "before", before));
    // Into another folder, from which it can then go on.
    train({"--resume", checkpoint(run, 9).string(), "--out", (folder / "branch").string(),
           "--max-steps", "9", "--device", "cpu"});
    CHECK(fs::exists(checkpoint(folder / "branch", 9)));
    go_on(folder / "branch", {"--max-steps", "12"});
    expect_same_checkpoint(checkpoint(folder / "branch", 12), folder / "before");
  }

  TEST_CASE("resume: a checkpoint that is none is exit code 3") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    train(small_run(set, folder / "run", {"--max-steps", "2"}));
    const fs::path good = checkpoint(folder / "run", 2), bad = folder / "bad.safetensors";
    const auto refuse = [&](const std::string& phrase) {
      expect_end(3, phrase, "fmtrain", small_run(set, folder / "new", {"--resume", bad.string()}));
      CHECK_FALSE(fs::exists(folder / "new"));
    };
    refuse("bad.safetensors");  // not there
    put(bad, get(good).substr(0, 2000));
    refuse("bad.safetensors");
    Metadata metadata = SafetensorsFile(good).metadata();
    metadata.erase("train");
    const float one = 1;
    write_safetensors(bad, {{"model.head.bias", DType::f32, {1}, &one}}, metadata);
    refuse("cannot be resumed from: its metadata has no train");
  }

  TEST_CASE("resume: a loss that is not finite ends with 5 and keeps the last good checkpoint") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const fs::path run = folder / "run", edited = folder / "edited.safetensors";
    train(small_run(set, run, {"--max-steps", "4"}));
    edit(checkpoint(run, 4), edited, "model.head.bias", 1e30f);
    const Arguments more = {"--resume", edited.string(), "--out", run.string(), "--max-steps",
                            "1000",     "--ckpt-every",  "1",     "--device",   "cpu"};
    const std::string message =
        expect_end(5, "[train] the loss of step 5 is not finite", "fmtrain", more).err;
    CHECK(contains(message, "the last good checkpoint is " + checkpoint(run, 4).string()));
    CHECK(fs::exists(checkpoint(run, 4)));
    CHECK_FALSE(fs::exists(checkpoint(run, 5)));
  }

  TEST_CASE("resume: no step goes unseen, however rarely the log is written") {
    const TemporaryFolder folder;
    // An epoch of more steps than the trainer keeps records of.
    const std::string set = put_set(folder / "set", 4600, 7);
    const fs::path run = folder / "run", edited = folder / "edited.safetensors";
    train(small_run(set, run, {"--max-steps", "4", "--batch", "1"}));
    edit(checkpoint(run, 4), edited, "model.head.bias", 1e30f);
    expect_end(5, "[train] the loss of step 5 is not finite", "fmtrain",
               {"--resume", edited.string(), "--out", run.string(), "--max-steps", "0", "--epochs",
                "1", "--log-every", "1000000", "--device", "cpu"});
  }

  TEST_CASE("resume: 50 skipped steps in a row end with 5, although the loss is finite") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const fs::path run = folder / "run", edited = folder / "edited.safetensors";
    train(small_run(set, run, {"--max-steps", "4"}));
    // A loss of 1e32; gradients whose squares leave float.
    edit(checkpoint(run, 4), folder / "bias", "model.head.bias", 1e16f);
    edit(folder / "bias", edited, "model.head.weight", 1e6f);
    const Outcome outcome =
        expect_end(5, "[train] 50 steps in a row were skipped", "fmtrain",
                   {"--resume", edited.string(), "--out", run.string(), "--max-steps", "1000",
                    "--log-every", "1", "--device", "cpu"});
    CHECK(contains(outcome.err, "the last of them step 54; the last good checkpoint is "));
    CHECK(log_rows(run).back()["grad_norm"].is_null());
  }
}

}  // namespace fm::test
