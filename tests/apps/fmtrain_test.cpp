// A training run: its folder, its refusals, its output, its signals.
#include <cmath>
#include <cstdlib>

#include "engine/io/png.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// A terminal of this process: what a program writes to its other side can be read here.
class Terminal {
 public:
  Terminal() : descriptor_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    REQUIRE(descriptor_ >= 0);
    REQUIRE(::grantpt(descriptor_) == 0);
    REQUIRE(::unlockpt(descriptor_) == 0);
    // Held open, so that what was written is still there when the program has ended.
    other_ = ::open(path().c_str(), O_RDWR | O_NOCTTY);
    ::fcntl(descriptor_, F_SETFL, O_NONBLOCK);
  }
  ~Terminal() { ::close(descriptor_), ::close(other_); }
  std::string path() const { return ::ptsname(descriptor_); }
  std::string text() const {
    std::string all;
    char piece[4096];
    for (ssize_t got; (got = ::read(descriptor_, piece, sizeof piece)) > 0;)
      all.append(piece, static_cast<std::size_t>(got));
    return all;
  }

 private:
  int descriptor_, other_ = -1;
};

std::string on_terminal(const Arguments& arguments, const Environment& environment) {
  const Terminal terminal;
  Program program("fmtrain", arguments, environment, "", terminal.path());
  std::string text;
  wait_until([&] {
    text += terminal.text();
    return program.ended();
  });
  CHECK(program.wait().code == 0);
  return text + terminal.text();
}

// Starts a run without an end and waits until it has made some steps.
struct Endless {
  Endless(const std::string& set, const fs::path& out)
      : program("fmtrain", small_run(set, out, {"--epochs", "1000000", "--log-every", "1"})) {
    wait_until([&] { return rows_so_far(out) >= 5; });
  }
  Program program;
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("fmtrain: what a run leaves in its folder") {
    const TemporaryFolder folder;
    const fs::path run = folder / "runs/one";
    const Outcome outcome = train(small_run(put_set(folder / "set"), run,
                                            {"--epochs", "2", "--log-every", "3", "--sample-every",
                                             "0", "--lr", "0.01", "--seed", "9"}));
    CHECK(logged_steps(run) == std::vector<int>{3, 6, 8, 9, 12, 15, 16});
    double sum = 0;
    for (const Json& row : log_rows(run)) {
      CHECK(row.size() == 9);
      CHECK(row["half_loss"].get<double>() == row["loss"].get<double>() / 2);
      CHECK(row["epoch"] == (row["step"].get<int>() + 7) / 8);
      CHECK(row["grad_norm"].get<double>() > 0);
      CHECK(row["loss_scale"] == 1);
      CHECK(row["lr"].get<double>() == doctest::Approx(0.01));
      CHECK(row["step_ms"].get<double>() > 0);
      CHECK(row["images_per_s"].get<double>() > 0);
      sum += row["loss"].get<double>();
    }
    CHECK(sum > 0);

    const Json config = json_of(run / "config.json");
    CHECK(config["model"]["d_model"] == 16);
    CHECK(config["train"]["seed"] == 9);
    CHECK(config["train"]["dtype"] == "fp32");
    CHECK(config["data"]["name"] == "set");
    CHECK(contains(outcome.err, config.dump()));  // echoed as written

    const Json environment = json_of(run / "env.json");
    for (const char* key : {"version", "commit", "compiler", "device", "cores"})
      CHECK(environment.contains(key));

    std::istringstream metrics(get(run / "metrics.csv"));
    std::string line;
    std::vector<std::string> lines;
    while (std::getline(metrics, line)) lines.push_back(line);
    REQUIRE(lines.size() == 3);
    CHECK(lines[0] == "epoch,step,loss,half_loss,step_ms,images_per_s,seconds");
    CHECK(lines[1].starts_with("1,8,"));
    CHECK(lines[2].starts_with("2,16,"));

    const Json summary = json_of(run / "summary.json");
    const double loss = summary["final_epoch_loss"].get<double>();
    CHECK(loss == doctest::Approx(std::stod(lines[2].substr(5))).epsilon(1e-5));
    CHECK(summary["half"].get<double>() == loss / 2);
    CHECK(summary["params"].get<std::int64_t>() > 1000);
    CHECK(summary["seed"] == 9);
    CHECK(summary["steps"] == 16);
    CHECK(summary["step_ms"]["median"].get<double>() > 0);
    CHECK(summary["step_ms"]["p90"].get<double>() >= summary["step_ms"]["median"].get<double>());
    CHECK(summary["peak_memory_bytes"]["allocator"].get<std::int64_t>() > 0);
    CHECK(summary["peak_memory_bytes"]["driver"].get<std::int64_t>() > 0);
    CHECK(summary["wall_s"].get<double>() > 0);
    CHECK(summary["device"].is_string());
    CHECK(contains(outcome.out, "half_loss"));

    for (const int step : {8, 16}) {
      char name[32];
      std::snprintf(name, sizeof name, "step-%08d.png", step);
      const DecodedPng png = read_png(run / "samples" / name);
      CHECK(png.image.width == 242);
      CHECK(png.image.height == 242);
      CHECK(png.text.at("step") == std::to_string(step));
      CHECK(png.text.at("solver") == "euler");
      CHECK(png.text.at("steps") == "10");
      CHECK(png.text.count("seed") == 1);
    }
    CHECK(get(run / "ckpt/latest") == "step-00000016.safetensors\n");
    CHECK(fs::exists(checkpoint(run, 8)));
  }

  TEST_CASE("fmtrain: the metadata of a checkpoint") {
    const TemporaryFolder folder;
    train(small_run(put_set(folder / "set"), folder / "run",
                    {"--max-steps", "11", "--ema-decay", "0.9"}));
    const SafetensorsFile file(checkpoint(folder / "run", 11));
    const Metadata& metadata = file.metadata();
    CHECK(Json::parse(metadata.at("config")) == json_of(folder / "run/config.json")["model"]);
    CHECK(metadata.at("time_convention") == "t = 0 is noise, t = 1 is data");
    CHECK(metadata.at("step") == "11");
    CHECK(metadata.at("epoch") == "1");
    CHECK(metadata.at("data_cursor") == "3");
    CHECK(metadata.at("seed") == "0");
    CHECK(metadata.at("adam_steps") == "11");
    for (const char* key : {"format", "data_scale", "loss_scale", "good_steps", "epoch_loss_sum"})
      CHECK(metadata.count(key) == 1);
    for (const char* prefix : {"model.", "ema.", "optim.m.", "optim.v."})
      CHECK(file.find(std::string(prefix) + "blocks.1.mixer.qkv.weight") != nullptr);
  }

  TEST_CASE(
      "fmtrain: two runs of one seed agree bit for bit, another seed or thread count does as it "
      "should") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto go = [&](const char* name, const Arguments& more) {
      train(small_run(set, folder / name, Arguments{"--max-steps", "6"} + more));
      return checkpoint(folder / name, 6);
    };
    const fs::path a = go("a", {});
    expect_same_checkpoint(a, go("b", {}));
    go("c", {"--threads", "3"});
    expect_same_checkpoint(a, checkpoint(folder / "c", 6));
    const SafetensorsFile one(a), other(go("d", {"--seed", "1"}));
    CHECK(bytes_of(one, one.at("model.head.weight")) !=
          bytes_of(other, other.at("model.head.weight")));
  }

  TEST_CASE("fmtrain: --dtype fp64 trains and stores doubles") {
    const TemporaryFolder folder;
    train(small_run(put_set(folder / "set"), folder / "run",
                    {"--max-steps", "2", "--dtype", "fp64"}));
    CHECK(SafetensorsFile(checkpoint(folder / "run", 2)).at("model.head.weight").dtype == "F64");
  }

  TEST_CASE("fmtrain: classes, logit-normal times and the other settings train") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    train(small_run(set, folder / "run",
                    {"--max-steps",       "3",      "--classes",      "10",
                     "--class-drop-prob", "0.5",    "--t-sampling",   "logit-normal",
                     "--warmup-steps",    "2",      "--betas",        "0.8,0.95",
                     "--cooldown",        "0.5",    "--grad-clip",    "0",
                     "--weight-decay",    "0",      "--d-conv",       "2",
                     "--expand",          "1",      "--directions",   "1",
                     "--ssm-norm",        "false",  "--sample-every", "3",
                     "--residual",        "narrow", "--no-graph"}));
    const std::vector<Json> rows = log_rows(folder / "run");
    CHECK(rows.back()["lr"].get<double>() == doctest::Approx(5e-5));  // the last of 2 steps
    expect_end(2, "classes must be more than the largest label, got 5", "fmtrain",
               small_run(set, folder / "few", {"--classes", "5"}));
  }

  TEST_CASE("fmtrain: --out is refused where something is") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const Arguments one_step = {"--max-steps", "1"};
    fs::create_directories(folder / "empty");
    train(small_run(set, folder / "empty", one_step));
    expect_end(2, "is not empty; add --resume latest to go on, --overwrite", "fmtrain",
               small_run(set, folder / "empty", one_step));
    put(folder / "empty/notes.txt", "mine");
    train(small_run(set, folder / "empty", {"--max-steps", "2", "--overwrite"}));
    CHECK(logged_steps(folder / "empty") == std::vector<int>{2});
    CHECK_FALSE(fs::exists(checkpoint(folder / "empty", 1)));
    CHECK(get(folder / "empty/notes.txt") == "mine");
    put(folder / "file", "");
    expect_end(2, "must be a folder, got a file", "fmtrain",
               small_run(set, folder / "file", one_step));
  }

  TEST_CASE("fmtrain: a folder that cannot be written or a full disk is exit code 1") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    put(folder / "file", "");
    expect_end(1, "could not be made", "fmtrain", small_run(set, folder / "file" / "run"));
    // A limit on the size of a file stands for a disk that is full.
    std::string line = "ulimit -f 8; exec " FM_BINARY_DIR "/fmtrain";
    for (const std::string& argument : small_run(set, folder / "run", {"--max-steps", "2"}))
      line += " '" + argument + "'";
    const Outcome outcome = run("/bin/sh", {"-c", line});
    INFO(outcome.err);
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "step-00000002.safetensors"));
    CHECK(fs::is_empty(folder / "run/ckpt"));  // nothing half written stays
  }

  TEST_CASE("fmtrain: --keep-last") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto kept = [&](const char* name, const char* last) {
      train(small_run(set, folder / name,
                      {"--max-steps", "7", "--ckpt-every", "2", "--keep-last", last}));
      std::vector<int> steps;
      for (int step = 0; step < 10; ++step)
        if (fs::exists(checkpoint(folder / name, step))) steps.push_back(step);
      CHECK(get(folder / name / "ckpt/latest") == "step-00000007.safetensors\n");
      return steps;
    };
    CHECK(kept("two", "2") == std::vector<int>{6, 7});
    CHECK(kept("all", "0") == std::vector<int>{2, 4, 6, 7});
  }

  TEST_CASE("fmtrain: one line an interval without a terminal, a bar on one") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const Arguments run =
        small_run(set, folder / "run", {"--max-steps", "6", "--log-every", "2", "--overwrite"});
    const Outcome plain = train(run);
    for (const char* line :
         {"\nstep 2/6  loss ", "\nstep 4/6  loss ", "\nstep 6/6  loss ", "\ndone: "})
      CHECK(contains(plain.err, line));
    CHECK_FALSE(contains(plain.err, "\r"));
    CHECK_FALSE(contains(plain.err, "\x1b"));

    const std::string coloured = on_terminal(run, {});
    CHECK(contains(coloured, "\r\x1b[Ktraining \x1b[32m━"));
    CHECK(contains(coloured, " 6/6  loss "));
    CHECK_FALSE(contains(coloured, "step 2/6"));
    const std::string bare = on_terminal(run, {{"NO_COLOR", "1"}});
    CHECK(contains(bare, "\r\x1b[Ktraining ━"));
    CHECK_FALSE(contains(bare, "\x1b[3"));
    CHECK(contains(on_terminal(run, {{"NO_COLOR", ""}}), "\x1b[32m"));
  }

  TEST_CASE("fmtrain: SIGINT and SIGTERM save and end with 130 and 143") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    for (const int number : {SIGINT, SIGTERM}) {
      const fs::path out = folder / std::to_string(number);
      Endless endless(set, out);
      endless.program.signal(number);
      const Outcome outcome = endless.program.wait();
      INFO(outcome.err);
      CHECK(outcome.code == 128 + number);
      CHECK(contains(outcome.err, "stopped by a signal at step "));
      const int step = logged_steps(out).back();
      CHECK(get(out / "ckpt/latest") == checkpoint(out, step).filename().string() + "\n");
      CHECK(SafetensorsFile(checkpoint(out, step)).metadata().at("step") == std::to_string(step));
    }
  }

  TEST_CASE("fmtrain: a second signal ends it at once") {
    const TemporaryFolder folder;
    // A first step that takes seconds.
    Program program("fmtrain",
                    {"--preset", "tiny", "--backbone", "mamba", "--patch", "2", "--batch", "256",
                     "--threads", "1", "--data", put_set(folder / "set", 256), "--device", "cpu",
                     "--out", (folder / "run").string()});
    wait_until([&] { return fs::exists(folder / "run/env.json"); });
    program.signal(SIGTERM);
    program.signal(SIGINT);
    CHECK(program.wait().code >= 130);
    CHECK_FALSE(fs::exists(folder / "run/ckpt/latest"));
    CHECK_FALSE(fs::exists(folder / "run/log.jsonl"));
  }
}

}  // namespace fm::test
