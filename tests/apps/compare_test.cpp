// fmcompare: a whole comparison in small, resumed, rebuilt from its folders, and what it refuses.
#include "apps/compare/compare_config.h"
#include "apps/compare/token_sweep.h"
#include "engine/io/png.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// A few steps of a small model on the built-in digits: nobody draws digits after them.
const Arguments kSmall = {"--preset",
                          "tiny",
                          "--data",
                          "digits",
                          "--device",
                          "cpu",
                          "--threads",
                          "2",
                          "--patch",
                          "7",
                          "--d-model",
                          "16",
                          "--heads",
                          "2",
                          "--mlp-hidden",
                          "48",
                          "--d-state",
                          "2",
                          "--max-steps",
                          "12",
                          "--sample-every",
                          "-1",
                          "--steps",
                          "2",
                          "--judged",
                          "1000",
                          "--sweep-steps",
                          "1,2",
                          "--sweep-judged",
                          "1000",
                          "--loss-images",
                          "20",
                          "--batches",
                          "1,4",
                          "--latency-runs",
                          "1",
                          "--nearest",
                          "16",
                          "--classifier-epochs",
                          "2",
                          "--class-share",
                          "0.5"};

Arguments comparison(const fs::path& out, const Arguments& more = {}) {
  Arguments all = {"run", "--out", out.string()};
  for (std::size_t i = 0; i < kSmall.size(); i += 2)
    if (std::find(more.begin(), more.end(), kSmall[i]) == more.end())
      all = all + Arguments{kSmall[i], kSmall[i + 1]};
  return all + more;
}

std::size_t bytes_without_checkpoints(const fs::path& run) {
  std::size_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(run))
    if (entry.is_regular_file() && entry.path().parent_path().filename() != "ckpt")
      bytes += entry.file_size();
  return bytes;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("fmcompare: a comparison from nothing to its report, resumed and rebuilt") {
    const TemporaryFolder folder;
    const fs::path out = folder / "comparison";

    // One run of the set first, as on a machine of its own.
    const Outcome one =
        expect_end(0, "parameters: mamba ", "fmcompare", comparison(out, {"--only", "hybrid:0"}));
    CHECK(contains(one.err, "names 99."));
    CHECK(fs::exists(out / "runs/hybrid-s0/evaluation/evaluation.json"));
    CHECK_FALSE(fs::exists(out / "runs/mamba-s0"));

    const Outcome all = expect_end(0, "hybrid-s0: finished before", "fmcompare", comparison(out));
    CHECK(contains(all.out, "decision: No winner: no backbone's samples pass the bar."));
    CHECK(contains(all.out, (out / "grids/mamba.png").string()));
    const Json report = json_of(out / "report.json");
    REQUIRE(report.at("backbones").size() == 3);
    CHECK(report.at("decision").at("winner").is_null());
    CHECK(report.at("published").at("rows").size() == 3);
    CHECK(report.at("disagreements").size() >= 10);
    CHECK(report.at("judge").at("marks").size() == 5);
    std::string noise;  // the first column of the viewer's pictures
    for (const Json& b : report.at("backbones")) {
      const std::string name = b.at("name");
      INFO(name);
      CHECK(b.at("loss").at("mean").get<double>() ==
            doctest::Approx(2 * b.at("half_loss").at("mean").get<double>()));
      for (const char* split : {"test", "train"}) {
        REQUIRE(b.at("loss_bins").at(split).size() == 10);
        for (const Json& loss : b.at("loss_bins").at(split)) CHECK(loss.get<double>() > 0.1);
      }
      double mean = 0;
      for (const Json& loss : b.at("loss_bins").at("test")) mean += loss.get<double>() / 10;
      CHECK(b.at("held_out").at("mean").get<double>() == doctest::Approx(mean));
      for (const char* figure :
           {"step_ms", "step_p90_ms", "images_per_s", "wall_s", "peak_memory_bytes", "frechet"})
        CHECK(b.at(figure).at("mean").get<double>() > 0);
      CHECK(b.at("flops").at("forward").get<double>() > 1e5);
      CHECK((b.at("flops").at("scan_share").get<double>() > 0) == (name != "transformer"));
      CHECK(b.at("steps_quality").size() == 4);  // two solvers at 1 and 2 steps
      CHECK(b.at("latency").size() == 2);
      CHECK(b.at("nearest").at("count") == 16);
      CHECK(b.at("curve").at("loss").size() >= 10);
      CHECK(b.at("grid").get<std::string>().starts_with("data:image/png;base64,"));
      CHECK(read_png(out / "grids" / (name + ".png")).image.width == 242);
      CHECK(bytes_without_checkpoints(out / "runs" / (name + "-s0")) < 3'000'000);
      CHECK(bytes_without_checkpoints(out / "runs" / (name + "-classes")) < 3'000'000);
      // All start from the same noise: the first column, of three steps' states.
      const DecodedPng states = read_png(out / "runs" / (name + "-s0") / "evaluation/states.png");
      CHECK(states.image.width == 3 * 28);
      CHECK(states.image.height == 8 * 28);
      std::string first;
      for (std::int64_t y = 0; y < states.image.height; ++y)
        first.append(
            reinterpret_cast<const char*>(states.image.pixels.data()) + y * states.image.width, 28);
      if (noise.empty()) noise = first;
      CHECK(first == noise);
    }
    const Json& viewer = report.at("viewer");
    REQUIRE(viewer.at("sets").size() == 2);
    CHECK(viewer.at("sets")[0].at("kind") == "classes");
    CHECK(viewer.at("sets")[0].at("rows").size() == 40);
    for (const Json& set : viewer.at("sets")) CHECK(set.at("backbones").size() == 3);

    const std::string markdown = get(out / "report.md");
    for (const char* part : {"## Decision", "| Pure Mamba | published | 3.1 M |", "plots/loss.svg",
                             "plots/cost.svg", "plots/steps_quality.svg", "plots/latency.svg",
                             "grids/hybrid-nearest.png", "## Published and measured"}) {
      INFO(part);
      CHECK(contains(markdown, part));
    }
    for (const Json& plot : report.at("plots"))
      CHECK(get(out / plot.at("file").get<std::string>()).starts_with("<svg "));

    // The report again, from folders that came from elsewhere, without a weight.
    const fs::path copied = folder / "copied";
    fs::create_directories(copied);
    fs::copy(out / "runs", copied / "runs", fs::copy_options::recursive);
    for (const auto& run : fs::directory_iterator(copied / "runs"))
      fs::remove_all(run.path() / "ckpt");
    expect_end(0, "", "fmcompare", {"report", copied.string()});
    CHECK(json_of(copied / "report.json") == report);

    // A run that was lost counts as failed, and the report is written all the same.
    const fs::path lost = copied / "runs/transformer-s0/evaluation/evaluation.json";
    Json failed;
    for (const char* field : {"format", "backbone", "label", "preset", "seed", "conditional"})
      failed[field] = json_of(lost).at(field);
    failed["failed"] = "the loss of step 5 is not finite";
    put(lost, failed.dump());
    expect_end(0, "", "fmcompare", {"report", copied.string()});
    CHECK(json_of(copied / "report.json").at("backbones")[1].at("failed") == failed["failed"]);
    CHECK(contains(get(copied / "report.md"), "failed: the loss of step 5 is not finite"));

    // Nothing is done twice; other settings are refused.
    const Outcome again =
        expect_end(0, "mamba-classes: finished before", "fmcompare", comparison(out));
    CHECK_FALSE(contains(again.err, "step 1/"));
    expect_end(2, "must be a run with these settings", "fmcompare",
               comparison(out, {"--d-state", "4"}));
  }

  TEST_CASE("fmcompare: a run that is stopped is saved and goes on") {
    const TemporaryFolder folder;
    const fs::path out = folder / "comparison";
    const Arguments arguments =
        comparison(out, {"--backbones", "transformer", "--max-steps", "600", "--no-viewer"});
    Program stopped("fmcompare", arguments);
    wait_until([&] { return rows_so_far(out / "runs/transformer-s0") > 5; });
    stopped.signal(SIGTERM);
    const Outcome outcome = stopped.wait();
    INFO(outcome.err);
    CHECK(outcome.code == 143);
    CHECK(contains(outcome.err, "saved; go on with"));
    CHECK_FALSE(fs::exists(out / "report.json"));
    const Outcome resumed = expect_end(0, "resuming from", "fmcompare", arguments);
    CHECK(contains(resumed.out, "decision: "));
    CHECK(json_of(out / "runs/transformer-s0/summary.json").at("steps") == 600);
  }

  TEST_CASE("fmcompare: what it refuses") {
    const TemporaryFolder folder;
    const auto refuse = [&](const char* phrase, const Arguments& more) {
      expect_end(2, phrase, "fmcompare", comparison(folder / "none", more));
    };
    refuse("parameters may differ by 10 % at most, got mamba", {"--mlp-hidden", "128"});
    refuse("preset must be paper, quick or tiny, got huge", {"--preset", "huge"});
    refuse("--only must be one of mamba:0, transformer:0", {"--only", "mamba:1"});
    refuse("each backbone is compared once, got mamba twice", {"--backbones", "mamba,mamba"});
    refuse("got conv", {"--backbones", "mamba,conv"});
    refuse("must be euler, midpoint, heun or rk4, got leapfrog", {"--solver", "leapfrog"});
    refuse("judged must be 64 or more", {"--judged", "10"});
    CHECK_FALSE(fs::exists(folder / "none"));
    expect_end(3, "holds no evaluated run", "fmcompare", {"report", folder.path().string()});
    expect_end(2, "tokens must be squares", "fmcompare", {"sweep", "--tokens", "50"});
    // Told to, it compares unequal models; a list of blocks is a backbone.
    const Outcome told = expect_end(
        0, "parameters: mamba ", "fmcompare",
        comparison(folder / "none", {"--mlp-hidden", "128", "--allow-unequal", "--dry-run",
                                     "--backbones", "mamba,attention*2+mamba"}));
    CHECK(contains(told.out, "run attentionx2-mamba-classes: 6 steps"));
  }

  TEST_CASE("fmcompare: presets") {
    for (const char* preset : {"paper", "quick", "tiny"}) {
      INFO(preset);
      Comparison c = comparison_preset(preset, {"mamba", "transformer", "hybrid"});
      check_parameters(c, false);
      for (const Contender& one : c.contenders) {
        CHECK(one.config.train.max_steps == c.contenders.front().config.train.max_steps);
        CHECK(one.config.train.epochs == c.contenders.front().config.train.epochs);
      }
      CHECK(c.evaluation.judged >= 1000);
      const auto runs = planned_runs(c, 10, 234, "");
      CHECK(runs.size() == static_cast<std::size_t>(3 * c.seeds + 3));
      CHECK(runs[1].folder == "transformer-s0");
      CHECK(runs.back().folder == "hybrid-classes");
      CHECK(runs.back().config.model.classes == 10);
    }
  }

  TEST_CASE("sweep: crossovers lie between the counts measured") {
    Json rows;
    const auto add = [&](const char* backbone, int tokens, const Json& ms) {
      rows.push_back({{"backbone", backbone}, {"tokens", tokens}, {"step_ms", ms}});
    };
    for (const int tokens : {100, 400, 1600}) add("mamba", tokens, 1.0);
    add("transformer", 100, 0.5), add("transformer", 400, 2.0), add("transformer", 1600, nullptr);
    CHECK(crossover(rows, "mamba", "transformer", "step_ms", 1).get<double>() ==
          doctest::Approx(200));
    CHECK(crossover(rows, "mamba", "transformer", "step_ms", 2).get<double>() ==
          doctest::Approx(400));
    CHECK(crossover(rows, "mamba", "transformer", "step_ms", 0.5).get<double>() == 100);
    CHECK(crossover(rows, "mamba", "transformer", "step_ms", 3).is_null());
    CHECK(crossover(rows, "mamba", "hybrid", "step_ms", 1).is_null());
    add("hybrid", 100, 3.0), add("hybrid", 400, 1.5), add("hybrid", 1600, 1.5);
    CHECK(crossover(rows, "mamba", "hybrid", "step_ms", 2).is_null());  // not any more
    CHECK(crossover(rows, "mamba", "hybrid", "step_ms", 1).get<double>() == 100);
    CHECK(shape_for(49).patch == 4);
    CHECK(shape_for(784).patch == 1);
    CHECK(shape_for(3136).image == 112);
  }

  TEST_CASE("fmcompare: a sweep over tokens") {
    const TemporaryFolder folder;
    const Outcome outcome = expect_end(
        0, "transformer, 16 tokens", "fmcompare",
        {"sweep", "--preset", "tiny", "--tokens", "49,16", "--backbones", "mamba,transformer",
         "--tokens-per-step", "98", "--steps", "1", "--sample-steps", "1", "--device", "cpu",
         "--threads", "1", "--out", folder.path().string()});
    CHECK(contains(outcome.out, "against the transformer"));
    const Json sweep = json_of(folder / "sweep.json");
    REQUIRE(sweep.at("rows").size() == 4);
    CHECK(sweep.at("rows")[0].at("tokens") == 16);
    CHECK(sweep.at("rows")[1].at("batch") == 2);
    for (const Json& row : sweep.at("rows"))
      for (const char* field : {"step_ms", "us_per_image", "peak_memory_bytes", "latency_ms"})
        CHECK(row.at(field).get<double>() > 0);
    CHECK(get(folder / "plots/sweep.svg").starts_with("<svg "));
  }
}

}  // namespace fm::test
