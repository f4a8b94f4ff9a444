// Sampling from a checkpoint: what is drawn, how it is chosen, what is written.
#include <cmath>

#include "engine/io/png.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// A trained run (of `more` training flags) and a place for what is sampled from it.
class Sampled {
 public:
  explicit Sampled(const Arguments& more = {}) {
    train(small_run(put_set(folder_ / "set"), run(),
                    Arguments{"--max-steps", "6", "--lr", "0.05"} + more));
  }
  fs::path run() const { return folder_ / "run"; }
  fs::path operator/(const std::string& name) const { return folder_ / name; }
  std::string text(const std::string& name) const { return (folder_ / name).string(); }

  Arguments arguments(const Arguments& more) const {
    return Arguments{"--ckpt", run().string(), "--device",      "cpu", "--threads",
                     "1",      "--out",        text("grid.png")} +
           more;
  }
  Outcome succeed(const Arguments& more) const {
    return expect_end(0, "", "fmsample", arguments(more));
  }
  void refuse(int code, const std::string& phrase, const Arguments& more) const {
    expect_end(code, phrase, "fmsample", arguments(more));
  }
  // The samples as [N, C, H, W] floats.
  std::vector<float> samples(const Arguments& more) const {
    succeed(more + Arguments{"--save-tensor", text("samples.safetensors")});
    return SafetensorsFile(text("samples.safetensors")).read<float>("samples");
  }

 private:
  TemporaryFolder folder_;
};

constexpr std::size_t kPixels = 28 * 28;

std::vector<float> image(const std::vector<float>& images, std::size_t i) {
  REQUIRE(images.size() >= (i + 1) * kPixels);
  return {images.begin() + static_cast<std::ptrdiff_t>(i * kPixels),
          images.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPixels)};
}

// Equal to the rounding of float arithmetic in another order.
void expect_near(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  CHECK(largest < 1e-4f);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("fmsample: a grid of 64 digits with its text chunks, paths on stdout") {
    const Sampled sampled;
    const Outcome outcome = sampled.succeed({"--solver", "heun", "--steps", "3", "--seed", "12"});
    CHECK(outcome.out == sampled.text("grid.png") + "\n");
    CHECK(contains(outcome.err, "step-00000006.safetensors, raw weights, fp32 on "));
    CHECK(contains(outcome.err, "64 images, 3 heun steps"));
    const DecodedPng png = read_png(sampled / "grid.png");
    CHECK(png.image.width == 242);
    CHECK(png.image.height == 242);
    CHECK(png.image.channels == 1);
    CHECK(png.text == PngText{{"seed", "12"}, {"solver", "heun"}, {"step", "6"}, {"steps", "3"}});
  }

  TEST_CASE("fmsample: the noise of image i depends on the seed and i alone") {
    const Sampled sampled;
    // The trajectory of one step: noise, then samples.
    const auto states = [&](const Arguments& more) {
      sampled.succeed(more + Arguments{"--steps", "1", "--trajectory", sampled.text("frames")});
      return SafetensorsFile(sampled / "frames/trajectory.safetensors").read<float>("trajectory");
    };
    const std::vector<float> five = states({"--n", "5"}),
                             pieces = states({"--n", "5", "--batch", "2"}),
                             three = states({"--n", "3"}),
                             other = states({"--n", "1", "--seed", "1"});
    REQUIRE(five.size() == 2 * 5 * kPixels);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(image(five, i) == image(pieces, i));
      CHECK(image(five, i) == image(three, i));
      CHECK(image(five, i) != image(five, i + 1));
    }
    CHECK(image(five, 0) != image(other, 0));
    // The samples agree to rounding: a matrix product may add in another order at another size.
    expect_near(five, pieces);
    expect_near(image(five, 5), image(three, 3));
  }

  TEST_CASE("fmsample: a file of the run is the run; fp64 is close to fp32") {
    const Sampled sampled;
    const std::vector<float> narrow = sampled.samples({"--n", "2"});
    expect_end(0, ", fp64 on ", "fmsample",
               {"--ckpt", checkpoint(sampled.run(), 6).string(), "--n", "2", "--device", "cpu",
                "--dtype", "fp64", "--out", sampled.text("g.png"), "--save-tensor",
                sampled.text("wide.safetensors")});
    expect_near(narrow, SafetensorsFile(sampled.text("wide.safetensors")).read<float>("samples"));
  }

  TEST_CASE(
      "fmsample: the trajectory goes from the noise to the samples, and the noise can be given "
      "back") {
    const Sampled sampled;
    const std::vector<float> samples =
        sampled.samples({"--n", "3", "--seed", "5", "--steps", "4", "--batch", "2", "--trajectory",
                         sampled.text("frames")});
    const SafetensorsFile file(sampled / "frames/trajectory.safetensors");
    CHECK(file.at("trajectory").shape == std::vector<std::int64_t>{5, 3, 1, 28, 28});
    const std::vector<float> states = file.read<float>("trajectory");
    const std::vector<float> noise(states.begin(), states.begin() + 3 * kPixels);
    CHECK(std::equal(samples.begin(), samples.end(), states.end() - 3 * kPixels));
    double square = 0;
    for (const float x : noise) square += x * x;
    CHECK(square / static_cast<double>(noise.size()) == doctest::Approx(1).epsilon(0.15));
    for (const char* frame : {"step-0000.png", "step-0004.png"})
      CHECK(read_png(sampled / "frames" / frame).image.height == 32);

    const std::string given = sampled.text("noise.safetensors");
    write_safetensors(given, {{"noise", DType::f32, {3, 1, 28, 28}, noise.data()}});
    CHECK(sampled.samples({"--noise", given, "--steps", "4"}) == samples);
    CHECK(read_png(sampled / "grid.png").text.at("seed") == given);
    write_safetensors(given, {{"noise", DType::f32, {3, 28, 28}, noise.data()}});
    sampled.refuse(3, "noise must be [N, 1, 28, 28], got [3, 28, 28]", {"--noise", given});
    write_safetensors(given, {{"sound", DType::f32, {1, 1, 28, 28}, noise.data()}});
    sampled.refuse(3, "noise", {"--noise", given});
  }

  TEST_CASE("fmsample: the four solvers differ, and agree more and more") {
    const Sampled sampled;
    const auto distance = [&](const char* solver, const char* steps) {
      const auto a = sampled.samples({"--n", "2", "--solver", solver, "--steps", steps});
      const auto b = sampled.samples({"--n", "2", "--solver", "rk4", "--steps", "64"});
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(a[i] - b[i], 2);
      return std::sqrt(sum);
    };
    for (const char* solver : {"euler", "midpoint", "heun"}) {
      INFO(solver);
      CHECK(distance(solver, "4") > 1e-4);
      CHECK(distance(solver, "32") < distance(solver, "4"));
    }
    sampled.refuse(2, "must be euler, midpoint, heun or rk4, got leapfrog",
                   {"--solver", "leapfrog"});
  }

  TEST_CASE("fmsample: ema weights where there are some, raw ones when asked for") {
    const Sampled sampled({"--ema-decay", "0.9"});
    const Outcome automatic = sampled.succeed({"--n", "1"});
    CHECK(contains(automatic.err, ", ema weights,"));
    CHECK(contains(sampled.succeed({"--n", "1", "--weights", "raw"}).err, ", raw weights,"));
    const auto ema = sampled.samples({"--n", "1", "--weights", "ema"});
    CHECK(sampled.samples({"--n", "1"}) == ema);
    CHECK(sampled.samples({"--n", "1", "--weights", "raw"}) != ema);
    sampled.refuse(2, "weights must be raw, ema or auto, got best", {"--weights", "best"});
    Sampled().refuse(3, "holds no ema weights", {"--weights", "ema"});
  }

  TEST_CASE("fmsample: labels and guidance") {
    const Sampled sampled({"--classes", "10"});
    const auto all = sampled.samples({"--n", "20", "--label", "all"});
    const DecodedPng png = read_png(sampled / "grid.png");
    CHECK(png.image.width == 10 * 30 + 2);
    CHECK(png.image.height == 2 * 30 + 2);
    const auto three = sampled.samples({"--n", "20", "--label", "3"});
    CHECK(image(three, 13) == image(all, 13));
    CHECK(image(three, 14) != image(all, 14));
    const auto null = sampled.samples({"--n", "20"});
    CHECK(image(null, 13) != image(all, 13));
    CHECK(sampled.samples({"--n", "20", "--label", "3", "--cfg-scale", "2"}) != three);
    // Scale 0 is the null label; up to the rounding of one addition.
    const auto unguided = sampled.samples({"--n", "20", "--label", "3", "--cfg_scale=0"});
    expect_near(unguided, null);
    sampled.refuse(2, "label must be all or 0 to 9, got 10", {"--label", "10"});
    sampled.refuse(2, "label must be all or 0 to 9, got two", {"--label", "two"});
    sampled.refuse(2, "cfg_scale must be a number", {"--label", "1", "--cfg-scale", "nan"});
    Sampled().refuse(2, "has no classes", {"--label", "all"});
  }

  TEST_CASE("fmsample: --info") {
    const Sampled sampled({"--ema-decay", "0.9"});
    const Outcome info = sampled.succeed({"--info"});
    for (const char* part :
         {"backbone    hybrid", "step        6\n", "weights     raw ema\n", "\"d_model\":16",
          "time_convention", "model.blocks.1.mixer.qkv.weight", "F32 [48, 16]"}) {
      INFO(part);
      CHECK(contains(info.out, part));
    }
    const Json summary = json_of(sampled.run() / "summary.json");
    CHECK(contains(info.out, "parameters  " + summary["params"].dump() + "\n"));
    CHECK_FALSE(fs::exists(sampled / "grid.png"));
  }

  TEST_CASE("fmsample: a checkpoint of another tool, bare and without a configuration") {
    const Sampled sampled;
    const SafetensorsFile file(checkpoint(sampled.run(), 6));
    std::vector<std::vector<float>> values;
    std::vector<TensorToStore> tensors;
    for (const StoredTensor& tensor : file.tensors()) {
      if (!tensor.name.starts_with("model.")) continue;
      values.push_back(file.read<float>(tensor.name));
      tensors.push_back({tensor.name.substr(6), DType::f32, tensor.shape, values.back().data()});
    }
    const std::string bare = sampled.text("bare.safetensors"), config = sampled.text("c.json");
    write_safetensors(bare, tensors);
    const Arguments from_bare = {"--ckpt",        bare,
                                 "--n",           "2",
                                 "--device",      "cpu",
                                 "--threads",     "1",
                                 "--out",         sampled.text("g.png"),
                                 "--save-tensor", sampled.text("t.safetensors")};
    expect_end(3, "do not decide heads, patch, channels, image; give them with --config",
               "fmsample", from_bare);
    put(config, R"({"heads": 2, "patch": 7, "channels": 1, "image": 28})");
    expect_end(0, "raw weights", "fmsample", from_bare + Arguments{"--config", config});
    CHECK(SafetensorsFile(sampled.text("t.safetensors")).read<float>("samples") ==
          sampled.samples({"--n", "2"}));
    // A run's own config.json serves as well.
    expect_end(0, "", "fmsample",
               from_bare + Arguments{"--config", (sampled.run() / "config.json").string()});
    CHECK(read_png(sampled / "g.png").text.at("step") == "unknown");
    tensors.pop_back();
    write_safetensors(bare, tensors);
    expect_end(3, "missing: ", "fmsample", from_bare + Arguments{"--config", config});
  }

  TEST_CASE("fmsample: what cannot be read, written or done") {
    const Sampled sampled;
    const Arguments one = {"--n", "1", "--device", "cpu"};
    expect_end(3, "nowhere.safetensors", "fmsample",
               Arguments{"--ckpt", sampled.text("nowhere.safetensors")} + one);
    expect_end(3, "holds no checkpoint", "fmsample",
               Arguments{"--ckpt", sampled.text("set")} + one);
    const std::string bad =
        put(sampled / "bad.safetensors", get(checkpoint(sampled.run(), 6)).substr(0, 9999))
            .string();
    expect_end(3, "bad.safetensors", "fmsample", Arguments{"--ckpt", bad} + one);
    expect_end(3, "bad.safetensors", "fmsample", Arguments{"--ckpt", bad, "--info"} + one);
    const Arguments run = Arguments{"--ckpt", sampled.run().string()} + one;
    put(sampled / "file", "");
    expect_end(1, "must be writable", "fmsample",
               run + Arguments{"--out", sampled.text("no/g.png")});
    expect_end(1, "must be writable", "fmsample",
               run + Arguments{"--out", "", "--trajectory", sampled.text("file") + "/frames"});
    sampled.refuse(2, "n must be 1 to", {"--n", "0"});
    sampled.refuse(2, "steps must be 1 to", {"--steps", "0"});
    sampled.refuse(2, "the CPU computes in fp32 or fp64, got fp16", {"--dtype", "fp16"});
    expect_end(4, "[", "fmsample", {"--ckpt", sampled.run().string(), "--device", "cuda:63"});
  }
}

}  // namespace fm::test
