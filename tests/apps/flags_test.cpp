// The command line itself: help, versions, spellings, precedence, exit codes of usage errors.
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

// The configuration that --dry-run prints before the first empty line.
Json resolved(const Arguments& arguments) {
  const Outcome outcome = run("fmtrain", arguments + Arguments{"--device", "cpu", "--dry-run"});
  INFO("stderr: ", outcome.err);
  REQUIRE(outcome.code == 0);
  return Json::parse(outcome.out.substr(0, outcome.out.find("\n\n")));
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("flags: --help and --version go to stdout") {
    for (const char* tool : {"fmtrain", "fmsample"}) {
      const Outcome help = run(tool, {"--help"}), version = run(tool, {"--version"});
      CHECK(help.code == 0);
      CHECK(help.err.empty());
      CHECK(contains(help.out, std::string("Example:\n  ") + tool + " --"));
      CHECK(contains(help.out, "Exit codes: 0 ok, 1 runtime, 2 usage, 3 data"));
      CHECK(contains(help.out, "--device TEXT=auto"));
      CHECK(version.code == 0);
      CHECK(version.err.empty());
      CHECK(version.out.starts_with(std::string(tool) + " 0."));
    }
  }

  TEST_CASE("flags: help lists every flag with its default") {
    const std::string train = run("fmtrain", {"--help"}).out,
                      sample = run("fmsample", {"--help"}).out;
    for (const char* flag : {"--backbone TEXT=mamba",
                             "--blocks",
                             "--preset TEXT=paper",
                             "--data TEXT=auto",
                             "--download",
                             "--out",
                             "--overwrite",
                             "--epochs INT=50",
                             "--max-steps INT=0",
                             "--batch INT=256",
                             "--lr FLOAT=0.0001",
                             "--weight-decay FLOAT=0.01",
                             "--betas",
                             "--grad-clip FLOAT=1",
                             "--warmup-steps INT=0",
                             "--cooldown FLOAT=0",
                             "--ema-decay FLOAT=0",
                             "--dtype TEXT=auto",
                             "--residual TEXT=wide",
                             "--threads INT=0",
                             "--seed UINT=0",
                             "--t-sampling TEXT=uniform",
                             "--classes INT=0",
                             "--class-drop-prob FLOAT=0.1",
                             "--d-model INT=128",
                             "--heads INT=8",
                             "--mlp-hidden INT=512",
                             "--d-state INT=64",
                             "--d-conv INT=4",
                             "--expand INT=2",
                             "--directions INT=2",
                             "--ssm-norm BOOL=true",
                             "--patch INT=2",
                             "--log-every INT=50",
                             "--ckpt-every INT=0",
                             "--sample-every INT=0",
                             "--keep-last INT=3",
                             "--profile TEXT",
                             "--resume",
                             "--no-graph",
                             "--config",
                             "--dry-run"}) {
      INFO(flag);
      CHECK(contains(train, flag));
    }
    for (const char* flag :
         {"--ckpt", "--weights TEXT=auto", "--n INT=64", "--steps INT=10", "--solver TEXT=euler",
          "--seed UINT=0", "--noise", "--label", "--cfg-scale FLOAT=1", "--out TEXT=samples.png",
          "--save-tensor", "--trajectory", "--info", "--dtype TEXT=auto", "--threads INT=0"}) {
      INFO(flag);
      CHECK(contains(sample, flag));
    }
  }

  TEST_CASE("flags: a usage error is one line on stderr and exit code 2") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto refuse = [&](const std::string& phrase, const Arguments& more) {
      const Outcome outcome =
          expect_end(2, phrase, "fmtrain", small_run(set, folder / "run", more));
      CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
      CHECK_FALSE(std::filesystem::exists(folder / "run"));
    };
    refuse("--no-such-flag", {"--no-such-flag"});
    refuse("--epochs", {"--epochs", "many"});
    refuse("backbone must be mamba, transformer or hybrid, got rnn", {"--backbone", "rnn"});
    refuse("preset must be paper, quick or tiny, got huge", {"--preset", "huge"});
    refuse("lr must be above 0", {"--lr", "0"});
    refuse("lr must be above 0", {"--lr", "nan"});
    refuse("betas must be two numbers", {"--betas", "0.9"});
    refuse("t_sampling must be uniform or logit-normal", {"--t-sampling", "sideways"});
    refuse("residual must be wide or narrow", {"--residual", "half"});
    refuse("heads must divide d_model", {"--heads", "3"});
    refuse("patch must divide the image", {"--patch", "5"});
    refuse("got lstm", {"--blocks", "mamba,lstm"});
    refuse("batch must be at most the 64 images", {"--batch", "65"});
    refuse("exclude one another", {"--overwrite", "--resume", "latest"});
    refuse("[device] must be auto, cpu, cuda or cuda:N, got gpu", {"--device", "gpu"});
    refuse("the CPU computes in fp32 or fp64, got fp16", {"--dtype", "fp16"});
    refuse("the CPU computes in fp32 or fp64, got bf16", {"--dtype", "bf16"});
    refuse("[dtype] must be auto, fp16, bf16, fp32 or fp64, got int8", {"--dtype", "int8"});
    expect_end(2, "--ckpt is required", "fmsample", {});
  }

  TEST_CASE("flags: snake_case is accepted, in both ways to give a value") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const Json config = resolved({"--data", set, "--d_model", "64", "--mlp_hidden=24", "--batch",
                                  "8", "--ssm_norm=false", "--class_drop_prob", "0.25"});
    CHECK(config["model"]["d_model"] == 64);
    CHECK(config["model"]["mlp_hidden"] == 24);
    CHECK(config["model"]["ssm_norm"] == false);
    CHECK(config["train"]["class_drop_prob"] == 0.25);
    CHECK(resolved({"--data", set, "--batch", "8", "--ssm-norm", "off"})["model"]["ssm_norm"] ==
          false);
    CHECK(resolved({"--data", set, "--batch", "8", "--ssm-norm"})["model"]["ssm_norm"] == true);
  }

  TEST_CASE("flags: flags beat --config, which beats --preset, which beats the defaults") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const std::string file =
        put(folder / "c.json",
            R"({"model": {"d_model": 48, "d_state": 3}, "train": {"batch": 8, "lr": 0.5}})")
            .string();
    const Arguments base = {"--data", set, "--preset", "tiny"};
    Json config = resolved(base);
    CHECK(config["model"]["blocks"] == Json::parse(R"(["mamba", "mamba"])"));
    CHECK(config["model"]["d_model"] == 64);
    CHECK(config["model"]["d_conv"] == 4);
    CHECK(config["train"]["batch"] == 16);
    CHECK(config["train"]["dtype"] == "fp32");
    CHECK(config["data"]["source"] == set);
    CHECK(config["data"]["images"] == 64);
    CHECK(config["train"]["max_steps"] > 0);
    CHECK(resolved(base + Arguments{"--epochs", "3"})["train"]["max_steps"] == 0);
    config = resolved(
        base + Arguments{"--config", file, "--heads", "2", "--d-state", "4", "--lr", "0.25"});
    CHECK(config["model"]["d_model"] == 48);
    CHECK(config["model"]["d_state"] == 4);
    CHECK(config["model"]["patch"] == 4);
    CHECK(config["train"]["batch"] == 8);
    CHECK(config["train"]["lr"] == 0.25);
    // A backbone asked for beats the file's blocks and keeps their number.
    put(folder / "c.json", R"({"blocks": ["mamba", "mamba"]})");
    config = resolved(base + Arguments{"--config", file, "--backbone", "hybrid"});
    CHECK(config["model"]["blocks"] == Json::parse(R"(["mamba", "attention"])"));
  }

  TEST_CASE("flags: a configuration file that is none is exit code 3") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto refuse = [&](const std::string& phrase, const std::string& text) {
      const std::string file = put(folder / "c.json", text).string();
      expect_end(3, phrase, "fmtrain", small_run(set, folder / "run", {"--config", file}));
    };
    refuse("is not JSON", "{");
    refuse("must be a JSON object", "[1]");
    refuse("d_modle is no field; there are", R"({"model": {"d_modle": 3}})");
    refuse("d_model must be a whole number in range, got \"16\"",
           R"({"model": {"d_model": "16"}})");
    refuse("there are model, train and data, got extra", R"({"model": {}, "extra": 1})");
    expect_end(3, "nowhere.json", "fmtrain",
               small_run(set, folder / "run", {"--config", (folder / "nowhere.json").string()}));
  }

  TEST_CASE("flags: a missing device is exit code 4") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    expect_end(4, "[", "fmtrain", small_run(set, folder / "run", {"--device", "cuda:63"}));
  }

  TEST_CASE("flags: a result that cannot be written is exit code 1") {
    const TemporaryFolder folder;
    Program program(
        "fmtrain",
        {"--data", put_set(folder / "set"), "--batch", "8", "--device", "cpu", "--dry-run"}, {},
        "/dev/full");
    const Outcome outcome = program.wait();
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, "[stdout]"));
  }

  TEST_CASE("flags: --dry-run prints the plan and makes nothing") {
    const TemporaryFolder folder;
    const Outcome outcome = run("fmtrain", small_run(put_set(folder / "set"), folder / "run",
                                                     {"--dry-run", "--epochs", "3"}));
    CHECK(outcome.code == 0);
    for (const char* part :
         {"parameters  ", "tokens      16\n", "steps       24 (8 an epoch)", " MiB",
          "1.925  zero output", "0.386  best linear denoiser", "0.078  full"}) {
      INFO(part);
      CHECK(contains(outcome.out, part));
    }
    CHECK_FALSE(std::filesystem::exists(folder / "run"));
  }
}

}  // namespace fm::test
