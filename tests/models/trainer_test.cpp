#include "models/trainer.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/io/checkpoint.h"
#include "tests/support/cuda.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

const DataSet& digits() {
  static const DataSet data = few_digits(200);
  return data;
}

TrainerSettings settings_of_test() {
  TrainerSettings settings;
  settings.batch = 16;  // 12 steps an epoch: 20 steps cross into the second
  settings.seed = 5;
  settings.optimizer.lr = 3e-3f;
  return settings;
}

// All that a step changes, as bytes.
struct Outcome {
  std::vector<std::byte> master, m, v, ema;
  StepState state;
  std::vector<float> losses, norms;
  std::vector<double> sums;

  double mean(std::size_t first, std::size_t count) const {
    return std::accumulate(losses.begin() + static_cast<std::ptrdiff_t>(first),
                           losses.begin() + static_cast<std::ptrdiff_t>(first + count), 0.0) /
           static_cast<double>(count);
  }
};

Outcome outcome_of(Trainer& trainer, std::uint64_t first_record = 0) {
  ParamStore& params = trainer.model().params();
  Outcome outcome{params.read(params.master()),
                  params.read(params.m()),
                  params.read(params.v()),
                  {},
                  trainer.optimizer().read_state(),
                  {},
                  {},
                  {}};
  if (params.ema()) outcome.ema = params.read(params.ema());
  for (const StepRecord& record : trainer.records(first_record, trainer.steps())) {
    outcome.losses.push_back(record.loss);
    outcome.norms.push_back(record.grad_norm);
    outcome.sums.push_back(record.epoch_loss_sum);
  }
  return outcome;
}

Outcome train(const Queue& queue, const ModelConfig& config, const TrainerSettings& settings,
              int steps) {
  Trainer trainer(queue, config, settings, digits());
  for (int i = 0; i < steps; ++i) trainer.step();
  return outcome_of(trainer);
}

void check_same_weights(const Outcome& a, const Outcome& b) {
  CHECK(a.master == b.master);
  CHECK(a.m == b.m);
  CHECK(a.v == b.v);
  CHECK(a.ema == b.ema);
  CHECK(a.state.step == b.state.step);
  CHECK(a.state.adam_steps == b.state.adam_steps);
  CHECK(a.state.epoch_loss_sum == b.state.epoch_loss_sum);
  CHECK(a.state.loss_scale == b.state.loss_scale);
  CHECK(a.state.good_steps == b.state.good_steps);
}

// By bits: the norm of a step that overflowed is not finite, and NaN equals nothing.
template <class Number>
bool same_bits(const std::vector<Number>& a, const std::vector<Number>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Number)) == 0;
}

void check_same(const Outcome& a, const Outcome& b) {
  check_same_weights(a, b);
  CHECK(same_bits(a.losses, b.losses));
  CHECK(same_bits(a.norms, b.norms));
  CHECK(same_bits(a.sums, b.sums));
}

// `steps` straight, and half of them, a checkpoint file, another trainer and the other half.
void check_resume(const Queue& queue, const ModelConfig& config, const TrainerSettings& settings,
                  int steps) {
  const TemporaryFolder folder;
  const Outcome straight = train(queue, config, settings, steps);
  StepState state;
  {
    Trainer first(queue, config, settings, digits());
    for (int i = 0; i < steps / 2; ++i) first.step();
    state = first.optimizer().read_state();
    write_checkpoint(folder / "half", first.model().params(), {});
  }
  Trainer second(queue, config, settings, digits());
  second.step();  // of which nothing may remain
  read_training_state(SafetensorsFile(folder / "half"), second.model().params());
  // What a checkpoint keeps; the rest is the step's own.
  StepState kept;
  kept.step = state.step;
  kept.adam_steps = state.adam_steps;
  kept.epoch_loss_sum = state.epoch_loss_sum;
  kept.loss_scale = state.loss_scale;
  kept.good_steps = state.good_steps;
  kept.skipped_in_row = state.skipped_in_row;
  second.resume_at(kept);
  CHECK(second.steps() == state.step);
  while (second.steps() < static_cast<std::uint64_t>(steps)) second.step();
  const Outcome resumed = outcome_of(second, state.step);
  check_same_weights(resumed, straight);
  const std::vector<float> rest(straight.losses.begin() + steps / 2, straight.losses.end());
  CHECK(resumed.losses == rest);
}

// Memory that the trainer takes of the queue, beside what training_memory says.
void check_memory(const Queue& queue, const ModelConfig& config, const TrainerSettings& settings) {
  const auto in_use = [&] {
    return std::visit([](const auto& q) { return q.memory().in_use(); }, queue);
  };
  const std::size_t before = in_use();
  const std::size_t data = digits().pixels.size() + digits().labels.size();
  const std::size_t planned =
      training_memory(queue, config, settings, static_cast<std::int64_t>(data));
  CHECK(in_use() == before);
  Trainer trainer(queue, config, settings, digits());
  const std::size_t taken = in_use() - before;
  trainer.step();
  std::visit([](auto q) { synchronize(q); }, queue);
  ParamStore& params = trainer.model().params();
  CHECK(planned == params.bytes() + trainer.optimizer().bytes() + trainer.step_memory() + data);
  // The position table, and every buffer rounded to 256 bytes.
  const std::size_t positions = std::size_t(config.tokens()) * std::size_t(config.d_model) *
                                size_of(acc_dtype(settings.compute));
  INFO("planned ", planned, ", taken ", taken);
  CHECK(taken >= planned);
  CHECK(taken <= planned + positions + 16 * 256);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("trainer: twenty steps of every backbone learn what they should") {
    struct Expected {
      const char* backbone;
      double last;  // mean loss of the last five steps: fp64's, to which fp32 keeps within 1e-6
    };
    for (const Expected& expected :
         {Expected{"mamba", 1.240140}, {"transformer", 1.260063}, {"hybrid", 1.250195}}) {
      const ModelConfig config = small_config(backbone_blocks(expected.backbone, 2));
      const Outcome outcome = train(CpuQueue(), config, settings_of_test(), 20);
      INFO(concat(expected.backbone, ": first five ", outcome.mean(0, 5), ", last five ",
                  outcome.mean(15, 5)));
      CHECK(outcome.mean(15, 5) < 0.8 * outcome.mean(0, 5));
      CHECK(std::fabs(outcome.mean(15, 5) - expected.last) < 5e-5);
      CHECK(outcome.state.step == 20);
      CHECK(outcome.state.adam_steps == 20);
    }
  }

  TEST_CASE("trainer: same seed, same bits; another seed, others") {
    const ModelConfig config = small_config({"mamba", "attention"});
    TrainerSettings settings = settings_of_test();
    const Outcome once = train(CpuQueue(), config, settings, 4);
    check_same(train(CpuQueue(), config, settings, 4), once);
    settings.seed = 6;
    const Outcome other = train(CpuQueue(), config, settings, 4);
    CHECK(other.losses[0] != once.losses[0]);  // velocity starts at zero: the batch differs
    CHECK(other.master != once.master);
  }

  TEST_CASE("trainer: the bits do not depend on the number of threads") {
    ModelConfig config = small_config({"mamba", "attention"});
    config.classes = 10;
    for (const DType type : {DType::f32, DType::f64}) {
      TrainerSettings settings = settings_of_test();
      settings.compute = type;
      const Outcome one = train(CpuQueue(1), config, settings, 4);
      check_same(train(CpuQueue(2), config, settings, 4), one);
      check_same(train(CpuQueue(5), config, settings, 4), one);
    }
  }

  TEST_CASE("trainer: a resumed run has the bits of one that was never stopped") {
    ModelConfig config = small_config({"mamba", "attention"});
    TrainerSettings settings = settings_of_test();
    settings.optimizer.warmup_steps = 15;  // still warming up at the resume
    check_resume(CpuQueue(), config, settings, 20);
    config.classes = 10;
    settings.optimizer.ema_decay = 0.99f;
    settings.time_sampling = TimeSampling::logit_normal;
    check_resume(CpuQueue(), config, settings, 20);
    settings.compute = DType::f64;
    check_resume(CpuQueue(), config, settings, 8);
  }

  TEST_CASE("trainer: fp32 follows fp64") {
    const ModelConfig config = small_config({"mamba", "attention"});
    TrainerSettings settings = settings_of_test();
    const Outcome narrow = train(CpuQueue(), config, settings, 5);
    settings.compute = DType::f64;
    const Outcome wide = train(CpuQueue(), config, settings, 5);
    for (std::size_t i = 0; i < 5; ++i) {
      INFO("step ", i);
      CHECK(narrow.losses[i] == doctest::Approx(wide.losses[i]).epsilon(1e-4));
      CHECK(narrow.norms[i] == doctest::Approx(wide.norms[i]).epsilon(1e-3));
    }
  }

  TEST_CASE("trainer: labels, the sampling of t and the average change what they should") {
    ModelConfig config = small_config({"attention"});
    TrainerSettings settings = settings_of_test();
    const Outcome plain = train(CpuQueue(), config, settings, 6);
    CHECK(plain.ema.empty());

    settings.optimizer.ema_decay = 0.9f;
    const Outcome average = train(CpuQueue(), config, settings, 6);
    CHECK(average.master == plain.master);
    CHECK(average.losses == plain.losses);
    CHECK(average.ema.size() == plain.master.size());
    CHECK(average.ema != plain.master);

    settings.time_sampling = TimeSampling::logit_normal;
    CHECK(train(CpuQueue(), config, settings, 6).losses != plain.losses);

    settings = settings_of_test();
    config.classes = 10;
    const Outcome labelled = train(CpuQueue(), config, settings, 6);
    settings.label_drop = 1;
    const Outcome dropped = train(CpuQueue(), config, settings, 6);
    CHECK(labelled.losses[0] == dropped.losses[0]);  // nothing is conditioned on yet
    CHECK(labelled.losses[5] != dropped.losses[5]);
    for (const float loss : labelled.losses) CHECK(std::isfinite(loss));
  }

  TEST_CASE("trainer: with every label dropped only the null label's row learns") {
    ModelConfig config = small_config({"attention"});
    config.classes = 10;
    TrainerSettings settings = settings_of_test();
    settings.optimizer.weight_decay = 0;
    settings.label_drop = 1;
    Trainer trainer(CpuQueue(), config, settings, digits());
    Queue queue = trainer.queue();
    const auto table = [&] {
      for (const Parameter& p : trainer.model().params().all())
        if (p.name == "label_embed.weight") return read(queue, p.master);
      return Values{};
    };
    const Values before = table();
    for (int i = 0; i < 5; ++i) trainer.step();
    const Values after = table();
    REQUIRE(before.size() == 11 * 32);
    const auto null = static_cast<std::ptrdiff_t>(10 * 32);
    CHECK(std::equal(before.begin(), before.begin() + null, after.begin()));
    CHECK(!std::equal(before.begin() + null, before.end(), after.begin() + null));
  }

  TEST_CASE("trainer: an epoch's running loss starts anew with the epoch") {
    TrainerSettings settings = settings_of_test();
    settings.batch = 64;  // three steps an epoch; eight images are left out
    Trainer trainer(CpuQueue(), small_config({"attention"}), settings, digits());
    CHECK(trainer.steps_per_epoch() == 3);
    for (int i = 0; i < 5; ++i) trainer.step();
    CHECK(trainer.steps() == 5);
    CHECK(trainer.step_times_ms().size() == 4);  // the first mark only begins
    const Outcome outcome = outcome_of(trainer);
    double sum = 0;
    for (std::size_t i = 0; i < 5; ++i) {
      sum = (i % 3 ? sum : 0) + outcome.losses[i];
      CHECK(outcome.sums[i] == doctest::Approx(sum).epsilon(1e-6));
    }
  }

  TEST_CASE("trainer: it takes the memory that was planned") {
    TrainerSettings settings = settings_of_test();
    for (const char* backbone : {"mamba", "transformer", "hybrid"})
      check_memory(CpuQueue(), small_config(backbone_blocks(backbone, 2)), settings);
    settings.optimizer.ema_decay = 0.9f;
    settings.compute = DType::f64;
    ModelConfig config = small_config({"mamba"});
    config.classes = 10;
    check_memory(CpuQueue(), config, settings);
  }

  TEST_CASE("trainer: data that does not fit the model is refused") {
    const auto refused = [](const std::string& phrase, int batch, const auto& change) {
      ModelConfig config = small_config({"attention"});
      change(config);
      TrainerSettings settings = settings_of_test();
      settings.batch = batch;
      expect_fault(Fault::usage, phrase, [&] { Trainer(CpuQueue(), config, settings, digits()); });
    };
    const auto as_is = [](ModelConfig&) {};
    refused("[train] batch must be positive, got 0", 0, as_is);
    refused("[train] the data set must hold a batch, got 200 images for batch 201", 201, as_is);
    refused("[train] the model takes 1 x 32 x 32 images, digits has 1 x 28 x 28", 16,
            [](ModelConfig& c) { c.image = 32; });
    refused("[train] the model takes 3 x 28 x 28 images", 16,
            [](ModelConfig& c) { c.channels = 3; });
    refused("[train] classes must be more than the largest label, got 9 and label 9", 16,
            [](ModelConfig& c) { c.classes = 9; });
    TrainerSettings half = settings_of_test();
    half.compute = DType::f16;
    expect_fault(Fault::usage, "[dtype] the CPU computes in fp32 or fp64, got fp16",
                 [&] { Trainer(CpuQueue(), small_config({"attention"}), half, digits()); });
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("trainer: a captured step has the bits of an eager one, in every precision") {
    const int steps = small_effort() ? 3 : 20;
    for (const DType type : cuda_types()) {
      for (const std::string backbone : {"mamba", "transformer", "hybrid"}) {
        if (small_effort() && backbone != "hybrid") continue;
        INFO(concat(backbone, " in ", name_of(type)));
        ModelConfig config = small_config(backbone_blocks(backbone, 2));
        config.classes = 10;
        TrainerSettings settings = settings_of_test();
        settings.compute = type;
        settings.optimizer.ema_decay = 0.99f;
        const Outcome graph = train(cuda_queue(), config, settings, steps);
        check_same(train(cuda_queue(), config, settings, steps), graph);
        settings.graph = false;
        check_same(train(cuda_queue(), config, settings, steps), graph);
        if (steps == 20) CHECK(graph.mean(15, 5) < 0.8 * graph.mean(0, 5));
      }
    }
  }

  TEST_CASE("trainer: on CUDA a resumed run has the bits of one that was never stopped") {
    const int steps = small_effort() ? 4 : 20;
    for (const DType type : cuda_types()) {
      INFO(concat(name_of(type)));
      TrainerSettings settings = settings_of_test();
      settings.compute = type;
      settings.optimizer.ema_decay = 0.99f;
      check_resume(cuda_queue(), small_config({"mamba", "attention"}), settings, steps);
      settings.graph = false;
      check_resume(cuda_queue(), small_config({"mamba", "attention"}), settings, steps / 2);
    }
  }

  TEST_CASE("trainer: fp16 skips steps that overflow, with the graph as without") {
    if (small_effort()) return;
    TrainerSettings settings = settings_of_test();
    settings.compute = DType::f16;
    const auto overflowed = [&](bool graph) {
      settings.graph = graph;
      Trainer trainer(cuda_queue(), small_config({"attention"}), settings, digits());
      StepState state = trainer.optimizer().read_state();
      state.loss_scale = 0x1p30f;  // 2 / 12544 of it times an error near 1 leaves fp16
      trainer.optimizer().write_state(state);
      for (int i = 0; i < 16; ++i) trainer.step();
      return outcome_of(trainer);
    };
    const Outcome graph = overflowed(true);
    CHECK(graph.state.loss_scale < 0x1p30f);
    CHECK(graph.state.adam_steps < 16);
    CHECK(graph.state.adam_steps > 0);
    CHECK(graph.state.step == 16);
    check_same(overflowed(false), graph);
  }

  TEST_CASE("trainer: CUDA in fp32 follows the CPU, in half precision roughly") {
    const ModelConfig config = small_config({"mamba", "attention"});
    TrainerSettings settings = settings_of_test();
    const Outcome cpu = train(CpuQueue(), config, settings, 5);
    for (const DType type : cuda_types()) {
      settings.compute = type;
      const Outcome cuda = train(cuda_queue(), config, settings, 5);
      for (std::size_t i = 0; i < 5; ++i) {
        INFO(concat(name_of(type), ", step ", i));
        CHECK(cuda.losses[i] ==
              doctest::Approx(cpu.losses[i]).epsilon(type == DType::f32 ? 1e-3 : 3e-2));
      }
    }
  }

  TEST_CASE(
      "trainer: with the residual stream in half precision it learns the same in less memory") {
    const ModelConfig config = small_config({"mamba", "attention"});
    TrainerSettings settings = settings_of_test();
    const Outcome cpu = train(CpuQueue(), config, settings, 5);
    const int steps = small_effort() ? 5 : 20;
    for (const DType type : {DType::f16, DType::bf16}) {
      if (small_effort() && type == DType::bf16) continue;
      INFO(concat(name_of(type)));
      settings.compute = type;
      // Of a model whose stream is a good part of it: elsewhere the plan of the rest may cost more.
      const auto memory = [&](bool narrow) {
        ModelConfig paper;
        paper.blocks.assign(8, "attention");
        TrainerSettings large = settings;
        large.batch = 64;
        large.narrow_stream = narrow;
        return training_memory(cuda_queue(), paper, large, 0);
      };
      CHECK(memory(true) < memory(false));
      settings.narrow_stream = true;
      const Outcome graph = train(cuda_queue(), config, settings, steps);
      settings.graph = false;
      check_same(train(cuda_queue(), config, settings, steps), graph);
      settings.graph = true;
      for (std::size_t i = 0; i < 5; ++i)
        CHECK(graph.losses[i] == doctest::Approx(cpu.losses[i]).epsilon(3e-2));
      check_memory(cuda_queue(), config, settings);
    }
  }

  TEST_CASE("trainer: it takes the device memory that was planned, and none in a step") {
    for (const DType type : cuda_types()) {
      TrainerSettings settings = settings_of_test();
      settings.compute = type;
      check_memory(cuda_queue(), small_config({"mamba", "attention"}), settings);
      Trainer trainer(cuda_queue(), small_config({"mamba", "attention"}), settings, digits());
      trainer.step();  // makes the handles and the workspace of the matrix products
      const std::size_t taken = cuda_queue().memory().in_use();
      for (int i = 0; i < 3; ++i) trainer.step();
      synchronize(cuda_queue());
      CHECK(cuda_queue().memory().in_use() == taken);
      CHECK(cuda_queue().memory().peak() >= taken);
    }
  }
}
#endif

}  // namespace fm::test
