// The engine against PyTorch: every golden file of this folder and of $FM_GOLDEN_DIR, in every
// precision.
//
// A file holds weights, inputs and what the model makes of them, computed in float64: velocity,
// loss, gradients, their norm, the weights after clipped AdamW steps, and samples by four solvers.
// Any configuration the model accepts.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "engine/io/fields.h"
#include "engine/io/safetensors.h"
#include "engine/ops/flow.h"
#include "engine/optim/optimizer.h"
#include "engine/tape.h"
#include "models/solver.h"
#include "tests/support/cuda.h"
#include "tests/support/expect.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// Relative L2 errors, about four times what PyTorch shows in the same precision on these files.
struct GoldenTolerance {
  double velocity, gradients, gradient, loss, adamw;
};
GoldenTolerance tolerance_of(DType type) {
  switch (type) {
    case DType::f64: return {1e-6, 1e-6, 1e-5, 1e-6, 1e-5};
    case DType::f16: return {2.5e-3, 3.5e-3, 1.5e-2, 1e-3, 1e-2};
    case DType::bf16: return {2e-2, 2.5e-2, 1.2e-1, 6e-3, 1};
    default: return {1e-4, 1e-4, 1e-4, 1e-5, 1e-4};
  }
}

// Far from overflow and from underflow in fp16 with gradients of a mean over a few thousand pixels.
constexpr float kLossScale = 1024;

std::vector<fs::path> golden_files() {
  std::vector<fs::path> files;
  std::vector<fs::path> folders = {fs::path(FM_SOURCE_DIR) / "tests/golden"};
  if (const char* more = std::getenv("FM_GOLDEN_DIR")) folders.emplace_back(more);
  for (const fs::path& folder : folders)
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  REQUIRE(files.size() >= 7);
  return files;
}

// A model with a golden file's weights, on one queue in one type.
class Golden {
 public:
  Golden(const fs::path& path, const Queue& queue, DType compute)
      : file_(path),
        config_(read_config()),
        case_(Json::parse(file_.metadata().at("case"))),
        model_(config_),
        context_(queue, compute, std::size_t{1} << 30) {
    model_.materialise(context_, ParamStore::Use::training);
    load("param.");
    OptimizerSettings settings;
    settings.lr = case_.at("lr").get<float>();
    settings.beta1 = case_.at("betas")[0].get<double>();
    settings.beta2 = case_.at("betas")[1].get<double>();
    settings.eps = case_.at("eps").get<double>();
    settings.weight_decay = case_.at("weight_decay").get<float>();
    settings.clip = case_.at("clip").get<float>();
    optimizer_ = std::make_unique<Optimizer>(context_, settings);
    StepState state = optimizer_->read_state();
    if (compute == DType::f16) state.loss_scale = kLossScale;
    optimizer_->write_state(state);
    scale_ = state.loss_scale;
  }

  void check() {
    const GoldenTolerance tolerance = tolerance_of(context_.compute);
    check_step(tolerance);
    if (small_effort()) return;  // what follows runs the same kernels many times
    check_samples(tolerance);
    check_adamw(tolerance);
  }

 private:
  ModelConfig read_config() const {
    ModelConfig config;
    from_json(config, Json::parse(file_.metadata().at("config")), file_.path().string());
    return config;
  }

  void load(const std::string& prefix) {
    ParamStore& params = model_.params();
    std::vector<std::byte> bytes(params.master().bytes());
    for (const Parameter& p : params.all()) {
      const auto values = file_.read_floats<double>(prefix + p.name);
      REQUIRE(static_cast<std::int64_t>(values.size()) == p.shape.count());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::size_t at = static_cast<std::size_t>(p.offset) + i;
        if (context_.acc() == DType::f64) reinterpret_cast<double*>(bytes.data())[at] = values[i];
        else reinterpret_cast<float*>(bytes.data())[at] = static_cast<float>(values[i]);
      }
    }
    params.write(params.master(), bytes);
    params.refresh_compute();
  }

  Tensor input(const std::string& name, const Shape& shape) {
    const Values values = file_.read_floats<double>(name);
    const Tensor tensor = context_.make(shape, context_.acc());
    context_.run([&]<class T>(auto& queue) {
      const std::vector<acc_t<T>> typed(values.begin(), values.end());
      upload(queue, tensor.data, typed.data(), tensor.bytes());
    });
    return tensor;
  }

  Values output(const Tensor& tensor) {
    Values values;
    context_.run([&]<class T>(auto& queue) {
      std::vector<acc_t<T>> typed(static_cast<std::size_t>(tensor.count()));
      download(queue, typed.data(), tensor.data, tensor.bytes());
      values.assign(typed.begin(), typed.end());
    });
    return values;
  }

  Tensor labels() {
    if (!config_.classes) return {};
    const auto values = file_.read<std::int64_t>("in.labels");
    const std::vector<std::int32_t> narrow(values.begin(), values.end());
    const Tensor tensor = context_.make({static_cast<std::int64_t>(narrow.size())}, DType::i32);
    std::visit([&](auto& queue) { upload(queue, tensor.data, narrow.data(), tensor.bytes()); },
               context_.queue);
    return tensor;
  }

  Shape image_shape() const {
    const auto& shape = file_.at("in.x1").shape;
    return {shape[0], shape[1], shape[2], shape[3]};
  }

  // Forward and backward on the file's batch; returns velocity and loss, leaves the gradients.
  std::pair<Values, Values> forward_backward(bool optimize) {
    context_.arena.reset();
    Tape tape(context_);
    context_.tape = &tape;
    const Shape shape = image_shape();
    const Tensor t = input("in.t", {shape[0]});
    const PathPoint point =
        flow_interpolate(context_, input("in.x0", shape), input("in.x1", shape), t);
    const Tensor v = model_.velocity(context_, point.x_t, t, labels());
    const Tensor loss = flow_loss(context_, v, point.target, optimizer_->device_state());
    const Values velocity = output(v), value = output(loss);
    tape.backward();
    if (optimize) optimizer_->step(context_, model_.params(), loss);
    context_.tape = nullptr;
    return {velocity, value};
  }

  void check_step(const GoldenTolerance& tolerance) {
    const auto [velocity, loss] = forward_backward(false);
    expect_close("velocity", velocity, file_.read_floats<double>("out.velocity"),
                 tolerance.velocity);
    expect_close("loss", loss, file_.read_floats<double>("out.loss"), tolerance.loss);
    const double norm = file_.read_floats<double>("out.grad_norm")[0];
    double error = 0, sum = 0;
    for (const Parameter& p : model_.params().all()) {
      Values got = output(p.gradient);
      const Values want = file_.read_floats<double>("grad." + p.name);
      REQUIRE(got.size() == want.size());
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        got[i] /= static_cast<double>(scale_);
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
        sum += got[i] * got[i];
      }
      error += difference;
      INFO("gradient of ", p.name);
      CHECK(std::sqrt(difference) <= tolerance.gradient * std::max(std::sqrt(size), 1e-3 * norm));
    }
    INFO("all gradients; their norm ", std::sqrt(sum), " against ", norm);
    CHECK(std::sqrt(error) <= tolerance.gradients * norm);
    CHECK(std::fabs(std::sqrt(sum) - norm) <= tolerance.gradients * norm);
  }

  void check_samples(const GoldenTolerance& tolerance) {
    for (const Solver solver : {Solver::euler, Solver::midpoint, Solver::heun, Solver::rk4}) {
      context_.arena.reset();
      const Tensor x = input("in.x0", image_shape());
      SampleSettings settings;
      settings.steps = case_.at("sample_steps").get<int>();
      settings.solver = solver;
      settings.cfg_scale = case_.at("cfg_scale").get<float>();
      integrate(context_, model_, x, labels(), settings);
      const std::string name = std::string("out.sample.") + name_of(solver);
      expect_close(name, output(x), file_.read_floats<double>(name), 2 * tolerance.velocity);
    }
  }

  // AdamW turns a gradient of rounding noise into a full step: the k third of qkv.bias, whose
  // gradient is exactly zero, is left out.
  void check_adamw(const GoldenTolerance& tolerance) {
    if (context_.compute == DType::bf16) return;
    const int steps = case_.at("adamw_steps").get<int>();
    for (int i = 0; i < steps; ++i) forward_backward(true);
    const double lr = case_.at("lr").get<double>();
    std::int64_t off = 0, all = 0;
    for (const Parameter& p : model_.params().all()) {
      const Values got = output(p.master), want = file_.read_floats<double>("adamw." + p.name);
      const std::size_t third = got.size() / 3;
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (p.name.ends_with("qkv.bias") && i / third == 1) continue;
        off += !(std::fabs(got[i] - want[i]) <= lr / 10);
        ++all;
      }
    }
    INFO("AdamW: ", off, " of ", all, " weights off by more than a tenth of lr");
    CHECK(static_cast<double>(off) <= tolerance.adamw * static_cast<double>(all));
  }

  SafetensorsFile file_;
  ModelConfig config_;
  Json case_;
  FlowModel model_;
  Context context_;
  std::unique_ptr<Optimizer> optimizer_;
  float scale_ = 1;
};

void check_all(const Queue& queue, const std::vector<DType>& types) {
  for (const fs::path& path : golden_files()) {
    for (const DType type : types) {
      INFO(concat(path.filename().string(), " in ", name_of(type)));
      CAPTURE(path.filename().string());
      Golden(path, queue, type).check();
    }
  }
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("golden: PyTorch's figures on the CPU") {
    check_all(CpuQueue(), {DType::f64, DType::f32});
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("golden: PyTorch's figures on CUDA") {
    check_all(CudaQueue(0), cuda_types());
  }
}
#endif

}  // namespace fm::test
