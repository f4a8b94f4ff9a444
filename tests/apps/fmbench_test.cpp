// fmbench: what it prints and writes, what it refuses, and that a wrong result gets no time.
#include "apps/bench/bench_run.h"
#include "apps/bench/ceilings.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

const Arguments kCpu = {"--device", "cpu", "--threads", "1", "--runs", "5"};
const Arguments kSwiglu = Arguments{"kernels", "--op", "swiglu", "--batch", "1"} + kCpu;

std::vector<Json> json_lines(const fs::path& path) {
  std::vector<Json> rows;
  std::istringstream in(get(path));
  for (std::string line; std::getline(in, line);) rows.push_back(Json::parse(line));
  return rows;
}

// The rows with every time multiplied: the baseline of a machine that is slower or faster.
void scale_times(const fs::path& from, const fs::path& to, double factor) {
  std::string text;
  for (Json row : json_lines(from)) {
    row["median_ms"] = row["median_ms"].get<double>() * factor;
    text += row.dump() + "\n";
  }
  put(to, text);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// y = 2 x, or something near it.
struct Doubling {
  float factor;
  bool skips_last = false, random = false;

  static Call make(BenchArrays& a, const Doubling& d) {
    return a.typed([&]<class T>(auto&) {
      using R = acc_t<T>;
      constexpr std::int64_t kCount = 1000;
      const R* const x = a.input<R>(kCount);
      R* const y = a.output<R>("y", kCount);
      const R factor = std::is_same_v<R, double> ? R{2} : static_cast<R>(d.factor);
      return [x, y, factor, d] {
        static int calls = 0;
        for (std::int64_t i = 0; i < kCount - d.skips_last; ++i) y[i] = factor * x[i];
        if (d.random) y[0] = static_cast<R>(++calls);
      };
    });
  }
};

Json doubling_row(const Doubling& checked, const Doubling& timed) {
  const Queue queue = CpuQueue(1);
  BenchList list(DType::f32, 1, false);
  list.add("doubling", "forward", "n1000", Tolerance{1e-6, 1e-3, 1e-2}, Work{8000, 1000, 0},
           Doubling::make, checked, timed);
  CallTimer timer(queue, 10, 10);
  Ceilings ceilings;
  ceilings.copy = {{1000, 1e-9}, {1e6, 1e-4}};
  ceilings.flops = ceilings.specials = ceilings.matrix_flops = 1e12;
  return kernel_row(list.benches().front(), queue, DType::f32, ceilings, timer);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("fmbench: help lists the subcommands, their flags and examples") {
    const Outcome help = run("fmbench", {"--help"});
    CHECK(help.code == 0);
    for (const char* text : {"kernels", "step", "sample", "Example:\n  fmbench kernels --op",
                             "fmbench step --backbone transformer --baseline", "Exit codes: 0 ok"})
      CHECK(contains(help.out, text));
    const std::string step = run("fmbench", {"step", "--help"}).out;
    for (const char* text : {"--backbone", "--preset TEXT=auto", "--baseline TEXT",
                             "--threshold FLOAT=1.05", "--json TEXT", "--device TEXT=auto"})
      CHECK(contains(step, text));
    CHECK(contains(run("fmbench", {"sample", "--help"}).out, "--batch INT=[1,64]"));
    CHECK(contains(run("fmbench", {"kernels", "--help"}).out, "--markdown"));
    CHECK(run("fmbench", {"--version"}).out.starts_with("fmbench 0."));
  }

  TEST_CASE("fmbench: usage errors end with 2, a bad baseline with 3, both with one line") {
    const TemporaryFolder folder;
    const std::string broken = put(folder / "broken", "no json\n").string();
    const std::string empty = put(folder / "empty", "").string();
    expect_end(2, "subcommand", "fmbench", {});
    expect_end(2, "--nonsense", "fmbench", {"kernels", "--nonsense"});
    expect_end(2, "op must be one of selective_scan, attention", "fmbench",
               Arguments{"kernels", "--op", "tea"} + kCpu);
    expect_end(2, "dtype must be fp16, bf16 or fp32, got fp64", "fmbench",
               {"kernels", "--device", "cpu", "--dtype", "fp64"});
    expect_end(2, "batch must be", "fmbench", {"kernels", "--device", "cpu", "--batch", "-1"});
    expect_end(2, "runs must be", "fmbench", {"step", "--device", "cpu", "--runs", "-1"});
    expect_end(2, "backbone must be", "fmbench", Arguments{"step", "--backbone", "rnn"} + kCpu);
    expect_end(2, "preset must be", "fmbench", Arguments{"sample", "--preset", "huge"} + kCpu);
    expect_end(2, "batch must be 1 to", "fmbench", Arguments{"sample", "--batch", "1,0"} + kCpu);
    expect_end(2, "threshold must be", "fmbench", kSwiglu + Arguments{"--threshold", "0"});
    expect_end(3, "cannot be read", "fmbench", kSwiglu + Arguments{"--baseline", "nowhere"});
    expect_end(3, "must hold JSON lines", "fmbench", kSwiglu + Arguments{"--baseline", broken});
    expect_end(3, "holds no time", "fmbench", kSwiglu + Arguments{"--baseline", empty});
    if (cuda_device_count() == 0) expect_end(4, "[", "fmbench", {"kernels", "--device", "cuda"});
  }

  TEST_CASE("fmbench kernels: every row is a time and a share of a floor") {
    const TemporaryFolder folder;
    const fs::path file = folder / "rows";
    const Outcome outcome =
        run("fmbench", Arguments{"kernels", "--batch", "1", "--json", file.string()} + kCpu);
    INFO(outcome.err);
    CHECK(outcome.code == 0);
    std::set<std::string> ops, names;
    for (const Json& row : json_lines(file)) {
      INFO(row.dump());
      REQUIRE_FALSE(row.contains("failure"));
      for (const char* key :
           {"name",  "op",     "call",    "shape",    "median_ms",    "p10_ms",   "p90_ms",
            "runs",  "bytes",  "flops",   "specials", "matrix_flops", "floor_ms", "share",
            "limit", "commit", "version", "device",   "dtype",        "ceilings", "clock_mhz"})
        CHECK(row.contains(key));
      CHECK(row["p10_ms"].get<double>() <= row["median_ms"].get<double>());
      CHECK(row["median_ms"].get<double>() <= row["p90_ms"].get<double>());
      CHECK(row["runs"].get<int>() >= 5);
      CHECK(row["bytes"].get<double>() > 0);
      CHECK(row["dtype"] == "fp32");
      CHECK(row["ceilings"]["copy_gb_per_s"].get<double>() > 0.1);
      CHECK(row["ceilings"]["fma_tflops"].get<double>() > 0);
      CHECK(row["share"].get<double>() > 0);
      // A floor that is beaten by more than the noise of a busy machine is no floor.
      CHECK(row["share"].get<double>() < 1.5);
      ops.insert(row["op"].get<std::string>());
      CHECK(names.insert(row["name"].get<std::string>()).second);
    }
    for (const auto& entry : fs::directory_iterator(fs::path(FM_SOURCE_DIR) / "kernels")) {
      if (!entry.is_directory() || entry.path().filename() == "base") continue;
      INFO(entry.path().string(), " has no benchmark");
      CHECK(ops.count(entry.path().filename().string()) == 1);
    }
    CHECK(contains(outcome.out, "ceilings, measured: copy "));
    CHECK(contains(outcome.out, "selective_scan      backward"));
  }

  TEST_CASE("fmbench kernels: a Markdown table") {
    const Outcome outcome = run("fmbench", kSwiglu + Arguments{"--markdown"});
    CHECK(outcome.code == 0);
    CHECK(contains(outcome.out,
                   "| op | call | shape | floor, us | time, us | share of the floor | limit |\n"
                   "| --- | --- | --- | ---: | ---: | ---: | --- |\n| swiglu | forward | "));
    for (const std::string& line : lines_of(outcome.out))
      if (line.starts_with("|")) CHECK(std::count(line.begin(), line.end(), '|') == 8);
  }

  TEST_CASE("fmbench: ratios to a baseline, and exit code 1 above the threshold") {
    const TemporaryFolder folder;
    const fs::path now = folder / "now", slow = folder / "slow", fast = folder / "fast";
    REQUIRE(run("fmbench", kSwiglu + Arguments{"--json", now.string()}).code == 0);
    scale_times(now, slow, 1000);
    scale_times(now, fast, 1e-3);
    const Outcome better = run("fmbench", kSwiglu + Arguments{"--baseline", slow.string()});
    CHECK(better.code == 0);
    CHECK(contains(better.out, "of baseline"));
    CHECK(contains(better.err, "2 rows compared with " + slow.string() + ", 0 above 1.05"));
    const Outcome worse = run("fmbench", kSwiglu + Arguments{"--baseline", fast.string()});
    CHECK(worse.code == 1);
    CHECK(contains(worse.out, " SLOWER"));
    CHECK(contains(worse.err, ", 2 above 1.05 times its time"));
    CHECK(run("fmbench", kSwiglu + Arguments{"--baseline", fast.string(), "--threshold", "1000000"})
              .code == 0);
    CHECK(run("fmbench", Arguments{"kernels", "--op", "cast", "--baseline", now.string()} + kCpu)
              .code == 3);  // nothing to compare
  }

  TEST_CASE("fmbench: JSON lines are appended, and the newest of a name is the baseline") {
    const TemporaryFolder folder;
    const fs::path file = folder / "rows", fast = folder / "fast";
    REQUIRE(run("fmbench", kSwiglu + Arguments{"--json", file.string()}).code == 0);
    scale_times(file, fast, 1e-3);
    REQUIRE(run("fmbench", kSwiglu + Arguments{"--json", fast.string()}).code == 0);
    CHECK(json_lines(fast).size() == 2 * json_lines(file).size());
    CHECK(run("fmbench", kSwiglu + Arguments{"--baseline", fast.string(), "--threshold", "100"})
              .code == 0);
    expect_end(1, "could not be written", "fmbench",
               kSwiglu + Arguments{"--json", (folder / "no/such/folder").string()});
  }

  TEST_CASE("fmbench step: the trainer's step") {
    const TemporaryFolder folder;
    const fs::path file = folder / "rows";
    const Outcome outcome =
        run("fmbench", Arguments{"step", "--backbone", "hybrid,transformer", "--batch", "2",
                                 "--data", put_set(folder / "set"), "--json", file.string()} +
                           kCpu);
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const std::vector<Json> rows = json_lines(file);
    REQUIRE(rows.size() == 2);
    CHECK(rows[0]["name"] == "step hybrid tiny b2 fp32");
    CHECK(rows[1]["backbone"] == "transformer");
    for (const Json& row : rows) {
      CHECK(row["median_ms"].get<double>() > 0);
      CHECK(row["images_per_s"].get<double>() ==
            doctest::Approx(2000 / row["median_ms"].get<double>()));
      CHECK(row["peak_bytes"].get<double>() > 1e6);
      CHECK(row["loss"].get<double>() > 0);
      CHECK(row["runs"] == 5);
      for (const char* key : {"commit", "device", "dtype", "clock_mhz", "params", "data", "preset"})
        CHECK(row.contains(key));
    }
    CHECK(contains(outcome.out, "images/s"));
  }

  TEST_CASE("fmbench sample: batches of a solver") {
    const TemporaryFolder folder;
    const fs::path file = folder / "rows";
    const Outcome outcome = run(
        "fmbench", {"sample", "--backbone", "transformer", "--batch", "1,3", "--steps", "2",
                    "--solver", "heun", "--json", file.string(), "--device", "cpu", "--runs", "3"});
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const std::vector<Json> rows = json_lines(file);
    REQUIRE(rows.size() == 2);
    CHECK(rows[0]["name"] == "sample transformer tiny b1 heun2 fp32");
    CHECK(rows[1]["batch"] == 3);
    for (const Json& row : rows) {
      CHECK(row["runs"] == 3);
      CHECK(row["median_ms"].get<double>() > 0);
    }
  }

  TEST_CASE("fmbench: a wrong result has no time") {
    const Doubling right{2};
    const Json row = doubling_row(right, right);
    CHECK_FALSE(row.contains("failure"));
    CHECK(row["median_ms"].get<double>() > 0);
    const auto failure = [](const Json& wrong) {
      CHECK_FALSE(wrong.contains("median_ms"));
      return wrong.value("failure", "");
    };
    CHECK(contains(failure(doubling_row({2.001f}, right)), ", allowed are 1e-06"));
    CHECK(contains(failure(doubling_row({.factor = 2, .skips_last = true}, right)),
                   "y is off by inf"));
    CHECK(contains(failure(doubling_row(right, {.factor = 2, .skips_last = true})),
                   "y has a value that is not finite"));
    CHECK(contains(failure(doubling_row(right, {.factor = 2, .random = true})),
                   "two runs gave different bits"));
  }

  TEST_CASE("fmbench: a failed check is exit code 1, whatever the other rows say") {
    const std::vector<Column> columns = {{"name", "name", -8}, {"ms", "median_ms", 8, 1, 2}};
    const Json good = {{"name", "good"}, {"median_ms", 1.0}};
    const Json bad = {{"name", "bad"}, {"failure", "y is off"}};
    Report fine({}, columns, {}), failing({}, columns, {});
    fine.row(good);
    CHECK(fine.finish() == 0);
    failing.row(bad);
    failing.row(good);
    CHECK(failing.finish() == 1);
  }

  TEST_CASE("fmbench: floors and what sets them") {
    Ceilings c;
    c.copy = {{1e4, 2e-6}, {1e6, 4e-6}, {1e9, 1e-3}};
    c.flops = 1e12;
    c.specials = 1e11;
    c.matrix_flops = 1e13;
    CHECK(c.copy_rate() == doctest::Approx(1e12));
    CHECK(floor_of({100, 0, 0}, c).seconds == doctest::Approx(2e-6));
    CHECK(floor_of({100, 0, 0}, c).limit == "launch");
    CHECK(floor_of({505e3, 0, 0}, c).seconds == doctest::Approx(3e-6));
    CHECK(floor_of({2e9, 0, 0}, c).seconds == doctest::Approx(2e-3));
    CHECK(floor_of({2e9, 1e9, 1e8, 1e9}, c).limit == "memory");
    CHECK(floor_of({1e9, 3e9, 0}, c).limit == "fma");
    CHECK(floor_of({1e9, 3e9, 5e8}, c).limit == "ex2");
    CHECK(floor_of({1e9, 3e9, 5e8, 1e11}, c).limit == "matrix");
    CHECK(floor_of({1e9, 3e9, 5e8, 1e11}, c).seconds == doctest::Approx(1e-2));
    c.shared_units = true;
    CHECK(floor_of({1e9, 3e9, 5e8, 1e11}, c).limit == "arithmetic");
    CHECK(floor_of({1e9, 3e9, 5e8, 1e11}, c).seconds == doctest::Approx(1.8e-2));
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("fmbench kernels: CUDA, every op is right and within its roofline") {
    const TemporaryFolder folder;
    const fs::path file = folder / "rows";
    const Outcome outcome = run("fmbench", {"kernels", "--device", "cuda", "--batch", "32",
                                            "--runs", "5", "--json", file.string()});
    INFO(outcome.out);
    INFO(outcome.err);
    CHECK(outcome.code == 0);
    for (const Json& row : json_lines(file)) {
      INFO(row.dump());
      REQUIRE(row.contains("share"));
      CHECK(row["share"].get<double>() > 0);
      CHECK(row["share"].get<double>() < 1.5);
      CHECK(row["clock_mhz"].get<double>() > 100);
    }
  }
}
#endif

}  // namespace fm::test
