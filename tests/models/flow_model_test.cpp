// The whole engine under a model: gradients against central differences, and what a forward pass
// takes.
#include "models/flow_model.h"

#include "engine/ops/flow.h"
#include "engine/tape.h"
#include "tests/support/cuda.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

constexpr int kBatch = 2;

// A model with every weight away from its start, and one batch.
struct Problem {
  Context context;
  FlowModel model;
  Tensor x_t, target, t, labels;

  Problem(const ModelConfig& config, const Queue& queue, DType type)
      : context(queue, type, std::size_t{8} << 20), model(config) {
    model.materialise(context, ParamStore::Use::training);
    model.params().initialise(3);
    perturb(context.queue, model.params(), 0.1);
    start();
  }

  void start() {
    const ModelConfig& c = model.config();
    context.arena.reset();
    const Shape shape{kBatch, c.channels, c.image, c.image};
    x_t = tensor_of(context, shape, context.acc(), normals(shape.count(), 1));
    target = tensor_of(context, shape, context.acc(), normals(shape.count(), 2));
    t = tensor_of(context, {kBatch}, context.acc(), {0.25, 0.625});
    if (c.classes) labels = tensor_of(context, {kBatch}, DType::i32, {1.0, double(c.classes)});
  }

  Tensor velocity() { return model.velocity(context, x_t, t, labels); }

  double loss() {
    Frame frame(context);
    return read(context.queue, flow_loss(context, velocity(), target, nullptr))[0];
  }

  void backward() {
    Tape tape(context);
    context.tape = &tape;
    flow_loss(context, velocity(), target, nullptr);
    tape.backward();
    context.tape = nullptr;
  }
};

// A sample of the elements of every parameter.
void check_gradients(const ModelConfig& config) {
  Problem problem(config, CpuQueue(), DType::f64);
  Queue& queue = problem.context.queue;
  // What nobody writes is seen.
  for (const Parameter& p : problem.model.params().all())
    write(queue, p.gradient, Values(static_cast<std::size_t>(p.shape.count()), NAN));
  problem.backward();
  for (const Parameter& p : problem.model.params().all()) {
    const Values weights = read(queue, p.master);
    check_gradient(
        p.name, weights, read(queue, p.gradient),
        [&](const Values& moved) {
          write(queue, p.master, moved);
          return problem.loss();
        },
        1e-5, 5);
    write(queue, p.master, weights);
  }
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("flow model: the gradient of every parameter, Mamba and attention together") {
    check_gradients(tiny_config({"mamba", "attention"}));
  }

  TEST_CASE(
      "flow model: the gradient of every parameter, with labels, channels and attention "
      "first") {
    ModelConfig config = tiny_config({"attention", "mamba"});
    config.classes = 3;
    config.channels = 2;
    config.patch = 3;
    config.expand = 1;
    check_gradients(config);
  }

  TEST_CASE("flow model: the gradient of every parameter, one direction without norms") {
    ModelConfig config = tiny_config({"mamba", "mamba"});
    config.directions = 1;
    config.ssm_norm = false;
    check_gradients(config);
  }

  TEST_CASE("flow model: an untrained model's velocity is zero") {
    Context context(CpuQueue(), DType::f32, std::size_t{8} << 20);
    FlowModel model(tiny_config({"mamba", "attention"}));
    model.materialise(context, ParamStore::Use::inference);
    model.params().initialise(5);
    const Tensor x = tensor_of(context, {2, 1, 6, 6}, DType::f32, normals(72, 1));
    const Tensor t = tensor_of(context, {2}, DType::f32, {0.1, 0.9});
    CHECK(read(context.queue, model.velocity(context, x, t)) == Values(72, 0));
  }

  TEST_CASE("flow model: the forward pass has the same bits with and without a tape") {
    for (const DType type : {DType::f32, DType::f64}) {
      Problem problem(tiny_config({"mamba", "attention"}), CpuQueue(), type);
      const Values without = read(problem.context.queue, problem.velocity());
      problem.start();
      Tape tape(problem.context);
      problem.context.tape = &tape;
      CHECK(read(problem.context.queue, problem.velocity()) == without);
      problem.context.tape = nullptr;
    }
  }

  TEST_CASE("flow model: one row of modulations serves all images") {
    for (const auto& blocks : {std::vector<std::string>{"mamba", "attention"}, {"attention"}}) {
      Problem problem(tiny_config(blocks), CpuQueue(), DType::f64);
      Context& context = problem.context;
      write(context.queue, problem.t, {0.375, 0.375});
      const Values want = read(context.queue, problem.velocity());
      const Tensor t = tensor_of(context, {1}, DType::f64, {0.375});
      const Tensor row = problem.model.modulation(context, t);
      CHECK(row.shape == (Shape{1, problem.model.modulation_columns()}));
      const Tensor v = problem.model.velocity_given(context, problem.x_t, row);
      expect_close("v", read(context.queue, v), want, 1e-12);
      // With a tape every image's modulations have gradients of their own.
      Tape tape(context);
      context.tape = &tape;
      expect_fault(Fault::usage, "[residual_norm]",
                   [&] { problem.model.velocity_given(context, problem.x_t, row); });
      context.tape = nullptr;
    }
  }

  TEST_CASE("flow model: inference gives back all memory but its result") {
    Problem problem(tiny_config({"mamba", "attention"}), CpuQueue(), DType::f32);
    Arena& arena = problem.context.arena;
    const Tensor v = problem.velocity();
    for (const Tensor& x : {problem.x_t, problem.target, problem.t, v}) arena.give_back(x.data);
    CHECK(is_empty(arena));
  }

  TEST_CASE("flow model: training gives back all memory but the constants of the forward pass") {
    const ModelConfig config = tiny_config({"mamba", "attention"});
    FlowModel model(config);
    Context context(CpuQueue(1), DType::f32);
    model.materialise(context, ParamStore::Use::training);
    const Tensor x = context.make({2, 1, 6, 6}, DType::f32), t = context.make({2}, DType::f32);
    const auto pass = [&] {
      Tape tape(context);
      context.tape = &tape;
      const Tensor loss = flow_loss(context, model.velocity(context, x, t), x, nullptr);
      tape.backward();
      context.tape = nullptr;
      context.arena.give_back(loss.data);
      return context.arena.peak();
    };
    // Patches [2, 9, 4] and sinusoids [2, 256] have no gradient; they stay to the end of the step.
    const std::size_t constants = 512 + 2048, first = pass();
    for (std::size_t passes = 1; passes < 10; ++passes) CHECK(pass() <= first + passes * constants);
  }

  TEST_CASE("flow model: planning finds the memory of a pass to the byte") {
    const ModelConfig config = tiny_config({"mamba", "attention"});
    const CpuQueue queue;
    const auto pass = [&](Context& context, FlowModel& model) {
      const Tensor x = context.make({2, 1, 6, 6}, DType::f32), t = context.make({2}, DType::f32);
      context.run([&]<class T>(auto& q) {
        fill_bytes(q, x.data, 0, x.bytes());
        fill_bytes(q, t.data, 0, t.bytes());
      });
      Tape tape(context);
      context.tape = &tape;
      flow_loss(context, model.velocity(context, x, t), x, nullptr);
      tape.backward();
      context.tape = nullptr;
    };
    FlowModel model(config);
    Context plan(queue, DType::f32);
    model.materialise(plan, ParamStore::Use::training);
    model.params().initialise(1);
    pass(plan, model);
    Context real(queue, DType::f32, plan.arena.peak());
    pass(real, model);
    CHECK(real.arena.peak() == plan.arena.peak());
    Context small(queue, DType::f32, plan.arena.peak() - 1);
    expect_fault(Fault::device, "[arena]", [&] { pass(small, model); });
  }

  TEST_CASE("flow model: images, times and labels that do not fit are refused") {
    ModelConfig config = tiny_config({"attention"});
    config.classes = 4;
    Problem problem(config, CpuQueue(), DType::f32);
    Context& context = problem.context;
    const Tensor three = context.make({3}, DType::f32);
    expect_fault(Fault::usage, "[model] x_t must be [3, 1, 6, 6], got [2, 1, 6, 6] fp32",
                 [&] { problem.model.velocity(context, problem.x_t, three, problem.labels); });
    expect_fault(Fault::usage, "[model] a class-conditional model needs labels",
                 [&] { problem.model.velocity(context, problem.x_t, problem.t); });
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  // The goldens bound the error in every precision; this one finds a gradient that is never
  // written.
  TEST_CASE("flow model: CUDA's gradients agree with the CPU's in fp64") {
    ModelConfig config = tiny_config({"mamba", "attention"});
    config.classes = 3;
    Problem want(config, CpuQueue(), DType::f64), got(config, cuda_queue(), DType::f32);
    for (const Parameter& p : got.model.params().all())
      write(got.context.queue, p.gradient, Values(static_cast<std::size_t>(p.shape.count()), NAN));
    want.backward();
    got.backward();
    for (std::size_t i = 0; i < want.model.params().all().size(); ++i) {
      const Parameter &a = want.model.params().all()[i], &b = got.model.params().all()[i];
      const Values wanted = read(want.context.queue, a.gradient);
      expect_close(a.name, read(got.context.queue, b.gradient), wanted, 1e-3);
    }
  }
}
#endif

}  // namespace fm::test
