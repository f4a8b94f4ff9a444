#include "models/solver.h"

#include <cmath>
#include <cstring>
#include <tuple>

#include "tests/support/cuda.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

constexpr std::int64_t kPixels = 36;

// A model for inference with weights away from their start.
struct Sampler {
  Queue queue;
  DType type;
  FlowModel model;

  explicit Sampler(int classes = 0, const Queue& on = CpuQueue(), DType compute = DType::f32)
      : queue(on), type(compute), model(config(classes)) {
    Context context(queue, type);
    model.materialise(context, ParamStore::Use::inference);
    model.params().initialise(3);
    perturb(queue, model.params(), 0.1);
  }
  static ModelConfig config(int classes) {
    ModelConfig config = tiny_config({"mamba", "attention"});
    config.classes = classes;
    return config;
  }
  std::vector<float> operator()(const SampleRequest& request) const {
    return sample(queue, type, model, request);
  }
};

SampleRequest request_of(std::int64_t count, int steps = 3) {
  SampleRequest request;
  request.count = count;
  request.settings.steps = steps;
  request.seed = 11;
  return request;
}

// The noise that a request starts from.
std::vector<float> noise_of(const Sampler& sampler, SampleRequest request) {
  std::vector<float> noise;
  request.settings.steps = 1;
  request.wants_states = true;
  request.on_step = [&](std::int64_t, std::int64_t, int step, const std::vector<float>& states) {
    if (step == 0) noise.insert(noise.end(), states.begin(), states.end());
  };
  sampler(request);
  return noise;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  return relative_error(Values(a.begin(), a.end()), Values(b.begin(), b.end()));
}

// Cuts all but the slow waves of the time embedding, so that the field is smooth in t and a
// solver's order can be seen.
void smooth_in_time(Sampler& sampler) {
  constexpr int kWidth = 256, kWaves = kWidth / 2;
  for (const Parameter& p : sampler.model.params().all()) {
    if (p.name != "time_fc1.weight") continue;
    Values weights = read(sampler.queue, p.master);
    REQUIRE(weights.size() % kWidth == 0);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double k = static_cast<double>(i % kWaves);
      const bool slow = 1000 * std::pow(10000.0, -k / kWaves) < 1;
      weights[i] = slow ? 5 * weights[i] : 0;
    }
    write(sampler.queue, p.master, weights);
  }
}

// The kernels of a matrix product depend on its size, so an image made in a smaller batch differs
// by rounding; made in a batch of one size, it has the same bits whatever is beside it.
void check_batches(const Sampler& sampler, double tolerance) {
  for (const Solver solver : {Solver::euler, Solver::heun}) {
    SampleRequest request = request_of(7);
    request.settings.solver = solver;
    request.settings.cfg_scale = 1.5f;
    if (sampler.model.config().classes) request.labels = {0, 1, 2, 3, 2, 1, 0};
    const std::vector<float> all = sampler(request);
    REQUIRE(all.size() == 7 * kPixels);
    CHECK(sampler(request) == all);
    for (const int batch : {1, 3}) {
      request.batch = batch;
      INFO(concat(name_of(solver), ", batches of ", batch));
      CHECK(distance(sampler(request), all) <= tolerance);
    }
    const std::vector<float> in_threes = sampler(request);
    request.count = 3;
    if (!request.labels.empty()) request.labels = {0, 1, 2};
    const std::vector<float> first = sampler(request);
    CHECK(std::equal(first.begin(), first.end(), in_threes.begin()));
  }
}

// One sampler through requests that keep its batch and requests that change it; on CUDA the second
// of equals is replayed from captured steps. Every answer has the bits of a sampler made for it.
void check_reuse(const Sampler& model) {
  fm::Sampler kept(model.queue, model.type, model.model);
  SampleRequest request = request_of(3);
  const auto check = [&] {
    const std::vector<float> fresh = model(request);
    for (int i = 0; i < 3; ++i) CHECK(kept(request) == fresh);
  };
  check();
  request.seed = 12;
  check();
  request.labels = {2, 0, 1};
  request.settings.cfg_scale = 2;
  check();
  request.labels = {1, 1, 3};
  check();
  request.settings.solver = Solver::heun;
  check();
  request.batch = 2;
  check();
  // More steps than a captured graph takes together, and each by itself where somebody looks.
  request.settings = {18, Solver::euler, 1};
  request.batch = 3;
  for (const bool labelled : {true, false}) {
    if (!labelled) request.labels = {};
    request.wants_states = false;
    check();
    const std::vector<float> quiet = kept(request);
    request.wants_states = true;
    check();
    CHECK(kept(request) == quiet);
  }
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("solver: names and what a step costs") {
    for (const char* name : {"euler", "midpoint", "heun", "rk4"})
      CHECK(std::string(name_of(solver_named(name))) == name);
    CHECK(evaluations_per_step(Solver::euler) == 1);
    CHECK(evaluations_per_step(Solver::midpoint) == 2);
    CHECK(evaluations_per_step(Solver::heun) == 2);
    CHECK(evaluations_per_step(Solver::rk4) == 4);
    expect_fault(Fault::usage, "[solver] must be euler, midpoint, heun or rk4, got Euler",
                 [] { solver_named("Euler"); });
  }

  TEST_CASE("solver: each converges at its order, in x and t") {
    Sampler sampler(0, CpuQueue(), DType::f64);
    smooth_in_time(sampler);
    Context context(sampler.queue, DType::f64, std::size_t{4} << 20);
    const auto solution = [&](Solver solver, int steps) {
      context.arena.reset();
      const Tensor x = tensor_of(context, {2, 1, 6, 6}, DType::f64, normals(2 * kPixels, 4));
      integrate(context, sampler.model, x, {}, {steps, solver});
      return read(context.queue, x);
    };
    const Values exact = solution(Solver::rk4, 64);
    const std::tuple<Solver, int, double> orders[] = {{Solver::euler, 64, 1},
                                                      {Solver::midpoint, 16, 2},
                                                      {Solver::heun, 16, 2},
                                                      {Solver::rk4, 8, 4}};
    for (const auto& [solver, steps, order] : orders) {
      const double coarse = relative_error(solution(solver, steps), exact),
                   fine = relative_error(solution(solver, 2 * steps), exact);
      INFO(concat(name_of(solver), ": ", coarse, ", ", fine));
      CHECK(coarse > 1e-9);  // something is there to converge
      CHECK(std::fabs(std::log2(coarse / fine) - order) < 0.25);
    }
  }

  TEST_CASE("solver: a sample does not depend on the batch it was made in") {
    check_batches(Sampler(), 1e-5);
    check_batches(Sampler(4), 1e-5);
    check_batches(Sampler(4, CpuQueue(), DType::f64), 1e-7);  // samples are floats
  }

  TEST_CASE("solver: a sampler used again draws what a new one does") {
    check_reuse(Sampler(4));
  }

  TEST_CASE("solver: noise depends on seed and image alone") {
    const Sampler sampler;
    SampleRequest request = request_of(5);
    request.batch = 2;
    const std::vector<float> five = noise_of(sampler, request);
    REQUIRE(five.size() == 5 * kPixels);
    request.count = 3;
    request.batch = 256;
    const std::vector<float> three = noise_of(sampler, request);
    CHECK(std::equal(three.begin(), three.end(), five.begin()));
    CHECK(!std::equal(five.begin(), five.begin() + kPixels, five.begin() + kPixels));
    request.seed = 12;
    CHECK(noise_of(sampler, request) != three);
    request.seed = 11 + (std::uint64_t{1} << 40);
    CHECK(noise_of(sampler, request) != three);
    const Sampler wide(0, CpuQueue(), DType::f64);
    request.seed = 11;
    CHECK(noise_of(wide, request) == three);
    CHECK(distance(wide(request), sampler(request)) < 1e-4);
  }

  TEST_CASE("solver: given noise takes the place of drawn noise, image by image") {
    const Sampler sampler;
    SampleRequest request = request_of(5);
    request.batch = 3;
    const std::vector<float> drawn = sampler(request), noise = noise_of(sampler, request);
    request.noise = &noise;
    request.seed = 99;
    CHECK(sampler(request) == drawn);
    const std::vector<float> last(noise.begin() + 3 * kPixels, noise.end());
    request.noise = &last;
    request.count = 2;
    CHECK(sampler(request) == std::vector<float>(drawn.begin() + 3 * kPixels, drawn.end()));
  }

  TEST_CASE("solver: guidance moves along the line from the null label to the label") {
    const Sampler sampler(4);
    SampleRequest request = request_of(4, 1);  // one Euler step is linear in the velocity
    const std::vector<float> null = sampler(request);
    request.labels = {4, 4, 4, 4};
    CHECK(sampler(request) == null);
    request.labels = {0, 1, 2, 3};
    const std::vector<float> plain = sampler(request);
    CHECK(distance(plain, null) > 1e-3);
    const auto at = [&](float scale) {
      request.settings.cfg_scale = scale;
      return sampler(request);
    };
    CHECK(at(1) == plain);
    CHECK(at(0) == null);
    CHECK(distance(at(1.0001f), plain) < 1e-4);  // the guided path, which scale 1 does without
    std::vector<float> wanted(plain.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = null[i] + 3 * (plain[i] - null[i]);
    CHECK(distance(at(3), wanted) < 1e-5);
    // The null label throughout has nothing to be guided away from.
    request.labels = {};
    CHECK(at(3) == null);
  }

  TEST_CASE("solver: on_step tells every step of every batch in order, and may stop it all") {
    const Sampler sampler;
    SampleRequest request = request_of(5, 2);
    request.batch = 2;
    using Call = std::tuple<std::int64_t, std::int64_t, int>;
    std::vector<Call> calls;
    std::vector<float> last;
    request.on_step = [&](std::int64_t first, std::int64_t images, int step, const auto& states) {
      calls.emplace_back(first, images, step);
      CHECK(states.size() ==
            (request.wants_states ? static_cast<std::size_t>(images * kPixels) : 0));
      if (step == 2) last.insert(last.end(), states.begin(), states.end());
    };
    const std::vector<Call> wanted = {{0, 2, 0}, {0, 2, 1}, {0, 2, 2}, {2, 2, 0}, {2, 2, 1},
                                      {2, 2, 2}, {4, 1, 0}, {4, 1, 1}, {4, 1, 2}};
    const std::vector<float> quiet = sampler(request);
    CHECK(calls == wanted);
    calls.clear();
    request.wants_states = true;
    const std::vector<float> watched = sampler(request);
    CHECK(calls == wanted);
    CHECK(watched == quiet);
    CHECK(last == watched);

    int seen = 0;
    request.on_step = [&](std::int64_t, std::int64_t, int, const auto&) {
      if (++seen == 4) fail(Fault::runtime, "enough");
    };
    expect_fault(Fault::runtime, "enough", [&] { sampler(request); });
    CHECK(seen == 4);
  }

  TEST_CASE("solver: requests that make no sense are refused") {
    const Sampler sampler(4);
    const auto refused = [&](const std::string& phrase, const auto& change) {
      SampleRequest request = request_of(2);
      change(request);
      expect_fault(Fault::usage, phrase, [&] { sampler(request); });
    };
    const std::vector<float> noise(kPixels);
    refused("[solver] steps must be positive, got 0", [](auto& r) { r.settings.steps = 0; });
    refused("[sample] the number of images must be positive, got 0", [](auto& r) { r.count = 0; });
    refused("in batches of 0", [](auto& r) { r.batch = 0; });
    refused("[sample] noise must hold 2 images of 36 values", [&](auto& r) { r.noise = &noise; });
    refused("[sample] labels must be one an image, got 3 for 2", [](auto& r) {
      r.labels = {0, 1, 2};
    });
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("solver: on CUDA too, a sample does not depend on its batch") {
    check_batches(Sampler(4, cuda_queue(), DType::f16), 3e-2);
    if (small_effort()) return;
    check_batches(Sampler(4, cuda_queue(), DType::f32), 1e-4);
    check_batches(Sampler(4, cuda_queue(), DType::bf16), 3e-1);
  }

  TEST_CASE("solver: on CUDA a sampler used again draws what a new one does") {
    if (small_effort()) return;
    for (const DType type : cuda_types()) check_reuse(Sampler(4, cuda_queue(), type));
  }

  TEST_CASE("solver: CUDA starts from the CPU's noise and ends near the CPU's samples") {
    const Sampler cpu, cuda(0, cuda_queue());
    CHECK(noise_of(cuda, request_of(5)) == noise_of(cpu, request_of(5)));
    for (const Solver solver : {Solver::euler, Solver::midpoint, Solver::heun, Solver::rk4}) {
      if (small_effort() && solver != Solver::heun) continue;
      SampleRequest request = request_of(5);
      request.settings.solver = solver;
      CHECK(distance(cuda(request), cpu(request)) < 1e-3);
    }
  }
}
#endif

}  // namespace fm::test
