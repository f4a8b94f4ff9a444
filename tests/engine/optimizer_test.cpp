#include "engine/optim/optimizer.h"

#include <cmath>
#include <limits>

#include "tests/support/cuda.h"
#include "tests/support/expect.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

constexpr double kLr = 0.01;

OptimizerSettings settings_of_test() {
  OptimizerSettings settings;
  settings.lr = static_cast<float>(kLr);
  settings.weight_decay = 0.5f;
  settings.clip = 0;
  settings.steps_per_epoch = 3;
  return settings;
}

// A matrix that decays and a vector that does not, with their optimizer.
struct Model {
  Context context;
  ParamStore params;
  Optimizer optimizer;
  Tensor loss;

  Model(const Queue& queue, DType type, const OptimizerSettings& settings = settings_of_test(),
        ParamStore::Use use = ParamStore::Use::training)
      : context(queue, type, std::size_t{1} << 16), optimizer(context, settings) {
    params.add("matrix", {2, 3}, init_constant(1));
    params.add("vector", {3}, init_constant(1));
    params.materialise(context, use);
    params.initialise(0);
    loss = tensor_of(context, {1}, context.acc(), {0.0});
  }

  Values of(const std::string& name, const Tensor& flat) {
    for (const Parameter& p : params.all()) {
      if (p.name != name) continue;
      const Values all = read(context.queue, flat);
      return {all.begin() + p.offset, all.begin() + p.offset + p.shape.count()};
    }
    return {};
  }

  void step(double loss_value, double matrix, double vector) {
    write(context.queue, loss, {loss_value});
    for (const Parameter& p : params.all())
      write(
          context.queue, p.gradient,
          Values(static_cast<std::size_t>(p.shape.count()), p.name == "matrix" ? matrix : vector));
    optimizer.step(context, params, loss);
  }
};

void check_same(const StepState& a, const StepState& b) {
  CHECK(a.step == b.step);
  CHECK(a.adam_steps == b.adam_steps);
  CHECK(a.epoch_loss_sum == b.epoch_loss_sum);
  CHECK(a.loss_scale == b.loss_scale);
  CHECK(a.good_steps == b.good_steps);
  CHECK(a.skipped_in_row == b.skipped_in_row);
  CHECK(a.overflow == b.overflow);
  CHECK(a.grad_factor == b.grad_factor);
  CHECK(a.lr == b.lr);
  CHECK(a.bias_correction1 == b.bias_correction1);
  CHECK(a.bias_correction2 == b.bias_correction2);
  CHECK(a.ema_decay == b.ema_decay);
}

void check_round_trip(const Queue& queue, DType type) {
  Model model(queue, type);
  StepState state;
  state.step = (std::uint64_t{1} << 40) + 7;
  state.adam_steps = (std::uint64_t{1} << 33) + 5;
  state.epoch_loss_sum = 0.1;
  state.loss_scale = 512;
  state.good_steps = 1234;
  state.skipped_in_row = 3;
  state.overflow = 1;
  state.grad_factor = 0.3f;
  state.lr = 0.2f;
  state.bias_correction1 = 0.7f;
  state.bias_correction2 = 0.6f;
  state.ema_decay = 0.99f;
  model.optimizer.write_state(state);
  check_same(model.optimizer.read_state(), state);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("optimizer: a fresh state, and any state there and back") {
    Model model(CpuQueue(1), DType::f32);
    check_same(model.optimizer.read_state(), StepState{});
    CHECK(!model.optimizer.settings().dynamic_scale);
    check_round_trip(CpuQueue(1), DType::f32);
    check_round_trip(CpuQueue(1), DType::f64);
  }

  TEST_CASE("optimizer: the first step moves by lr against the gradient's sign, decay beside it") {
    Model model(CpuQueue(1), DType::f64, settings_of_test(), ParamStore::Use::training_with_ema);
    model.step(0.25, 0.5, -2);
    // m_hat / sqrt(v_hat) is the sign; the matrix loses lr wd p on top.
    const double matrix = 1 - kLr - kLr * 0.5, vector = 1 + kLr;
    expect_close("matrix", model.of("matrix", model.params.master()), Values(6, matrix), 1e-6);
    expect_close("vector", model.of("vector", model.params.master()), Values(3, vector), 1e-6);
    expect_close("m", model.of("matrix", model.params.m()), Values(6, 0.1 * 0.5), 1e-12);
    expect_close("v", model.of("vector", model.params.v()), Values(3, 0.001 * 4), 1e-12);
    const StepState state = model.optimizer.read_state();
    CHECK(state.step == 1);
    CHECK(state.adam_steps == 1);
    CHECK(state.epoch_loss_sum == 0.25);
  }

  TEST_CASE("optimizer: without a gradient only what decays moves") {
    Model model(CpuQueue(1), DType::f64);
    model.step(1, 0, 0);
    expect_close("matrix", model.of("matrix", model.params.master()), Values(6, 1 - kLr * 0.5),
                 1e-8);
    CHECK(model.of("vector", model.params.master()) == Values(3, 1));
  }

  TEST_CASE("optimizer: the average follows where there is one") {
    OptimizerSettings settings = settings_of_test();
    settings.ema_decay = 0.9f;
    Model model(CpuQueue(1), DType::f64, settings, ParamStore::Use::training_with_ema);
    model.step(1, 1, 1);
    const double decay = 2.0 / 11;  // warming up: (1 + n) / (10 + n) after n = 1 update
    expect_close("ema", model.of("vector", model.params.ema()),
                 Values(3, decay * 1 + (1 - decay) * (1 - kLr)), 1e-7);
  }

  TEST_CASE("optimizer: a step whose gradient is not finite changes no weight, and is recorded") {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      Model model(CpuQueue(1), DType::f32);
      model.step(1, 1, 1);
      const auto master = model.params.read(model.params.master()),
                 m = model.params.read(model.params.m()), v = model.params.read(model.params.v());
      model.step(2, 1, bad);
      CHECK(model.params.read(model.params.master()) == master);
      CHECK(model.params.read(model.params.m()) == m);
      CHECK(model.params.read(model.params.v()) == v);
      const StepState state = model.optimizer.read_state();
      CHECK(state.step == 2);
      CHECK(state.adam_steps == 1);
      CHECK(state.skipped_in_row == 1);
      const auto records = model.optimizer.records(0, 2);
      CHECK(records[0].overflow == 0);
      CHECK(records[1].overflow == 1);
      model.step(2, 1, 1);
      CHECK(model.params.read(model.params.master()) != master);
      CHECK(model.optimizer.read_state().skipped_in_row == 0);
    }
  }

  TEST_CASE("optimizer: a record holds its step's loss, norm, rate and the epoch's sum") {
    OptimizerSettings settings = settings_of_test();
    settings.warmup_steps = 4;
    Model model(CpuQueue(1), DType::f32, settings);
    for (int i = 0; i < 7; ++i) model.step(i + 1, 2, 0);
    const auto records = model.optimizer.records(2, 7);
    REQUIRE(records.size() == 5);
    const double sums[] = {6, 4, 9, 15, 7};  // epochs of three steps: 1 2 3 | 4 5 6 | 7
    for (std::size_t i = 0; i < records.size(); ++i) {
      const std::uint64_t step = i + 2;
      CHECK(records[i].step == step);
      CHECK(records[i].loss == static_cast<float>(step + 1));
      CHECK(std::fabs(records[i].grad_norm - std::sqrt(6 * 4.0)) < 1e-5);
      CHECK(records[i].lr == doctest::Approx(kLr * std::min(1.0, double(step + 1) / 4)));
      CHECK(records[i].loss_scale == 1);
      CHECK(records[i].epoch_loss_sum == sums[i]);
    }
  }

  TEST_CASE("optimizer: the ring keeps the newest records") {
    Model model(CpuQueue(1), DType::f32);
    constexpr std::uint64_t kSteps = kRecordRing + 10;
    for (std::uint64_t i = 0; i < kSteps; ++i) model.step(double(i), 1, 1);
    const auto all = model.optimizer.records(0, kSteps);
    REQUIRE(all.size() == kRecordRing);
    for (std::size_t i = 0; i < all.size(); ++i) {
      REQUIRE(all[i].step == i + 10);
      REQUIRE(all[i].loss == static_cast<float>(i + 10));
    }
    const auto last = model.optimizer.records(kSteps - 2, kSteps);
    REQUIRE(last.size() == 2);
    CHECK(last[1].step == kSteps - 1);
    CHECK(model.optimizer.records(kSteps, kSteps).empty());
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("optimizer: the loss is scaled in fp16 alone; the compute copy follows the master") {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      check_round_trip(cuda_queue(), type);
      Model model(cuda_queue(), type);
      const bool scaled = type == DType::f16;
      CHECK(model.optimizer.settings().dynamic_scale == scaled);
      CHECK(model.optimizer.read_state().loss_scale == (scaled ? kInitialLossScale : 1));
      model.step(0.25, 0.5, -2);
      const Values vector = model.of("vector", model.params.master());
      expect_close("vector", vector, Values(3, 1 + kLr), 1e-5);
      if (type == DType::f32) continue;
      CHECK(model.of("vector", model.params.compute()) ==
            (scaled ? round_to<f16>(vector) : round_to<bf16>(vector)));
    }
  }

  TEST_CASE("optimizer: an overflow halves the scale of fp16") {
    Model model(cuda_queue(), DType::f16);
    model.step(1, std::numeric_limits<double>::infinity(), 1);
    CHECK(model.optimizer.read_state().loss_scale == kInitialLossScale / 2);
    CHECK(model.optimizer.records(0, 1)[0].loss_scale == kInitialLossScale);
    CHECK(model.of("vector", model.params.master()) == Values(3, 1));
  }
}
#endif

}  // namespace fm::test
