#include "engine/params.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "tests/support/cuda.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

void declare(ParamStore& params) {
  params.add("head.weight", {3, 5}, init_uniform(0.25));
  params.add("head.bias", {3}, init_constant(2));
  params.add("mixer.A_log", {2, 70}, init_normal(0.5));
  params.add("mixer.out_norm", {2, 8}, init_constant(1));
  params.add("mixer.x_proj", {2, 3, 4}, init_uniform(1));
  params.add("wide", {64, 64}, init_normal(0.02));
}

Values master_of(Queue& queue, std::uint64_t seed, DType type) {
  Context context(queue, type);
  ParamStore params;
  declare(params);
  params.materialise(context, ParamStore::Use::training);
  params.initialise(seed);
  return read(context.queue, params.master());
}

struct Moments {
  double mean = 0, deviation = 0, low = 0, high = 0;
  explicit Moments(const Values& values) {
    const double n = static_cast<double>(values.size());
    for (const double x : values) mean += x / n;
    for (const double x : values) deviation += (x - mean) * (x - mean) / n;
    deviation = std::sqrt(deviation);
    low = *std::min_element(values.begin(), values.end());
    high = *std::max_element(values.begin(), values.end());
  }
};

// n values that `init` starts from.
Values draw(const Init& init, std::int64_t n) {
  Context context(CpuQueue(1), DType::f64);
  ParamStore params;
  params.add("p", {n}, init);
  params.materialise(context, ParamStore::Use::inference);
  params.initialise(11);
  return read(context.queue, params.all()[0].master);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("params: each starts at a chunk of its own, and references stay valid") {
    ParamStore params;
    const Parameter& first = params.add("first", {65}, init_constant(0));
    for (int i = 0; i < 1000; ++i) params.add(concat("p", i), {1}, init_constant(0));
    CHECK(&first == &params.all()[0]);
    CHECK(first.name == "first");
    std::int64_t offset = 0;
    std::uint32_t index = 0;
    for (const Parameter& p : params.all()) {
      CHECK(p.offset == offset);
      CHECK(p.index == index++);
      offset += (p.shape.count() + kDecayChunk - 1) / kDecayChunk * kDecayChunk;
    }
    CHECK(params.flat_count() == offset);
    CHECK(params.count() == 65 + 1000);
  }

  TEST_CASE("params: those of a region are neighbours, whatever is declared between them") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    params.add("before", {3}, init_constant(7));
    ParamStore::Region matrices = params.reserve(5 * 3), vectors = params.reserve(5);
    const Parameter& first = params.add("a.weight", {2, 3}, init_constant(1), matrices);
    params.add("a.bias", {2}, init_constant(2), vectors);
    const Parameter& between = params.add("between", {70, 2}, init_constant(8));
    const Parameter& second = params.add("b.weight", {3, 3}, init_constant(3), matrices);
    params.add("b.bias", {3}, init_constant(4), vectors);
    CHECK(second.offset == first.offset + 6);
    CHECK(second.index == 4);
    CHECK(between.offset % kDecayChunk == 0);
    expect_fault(Fault::usage, "[params] c.bias [1] does not fit its region: 0 elements are left",
                 [&] { params.add("c.bias", {1}, init_constant(0), vectors); });

    params.materialise(context, ParamStore::Use::training);
    params.initialise(1);
    const auto values = [&](const Tensor& tensor) { return read(context.queue, tensor); };
    CHECK(values({first.master.data, {5, 3}, DType::f32}) ==
          Values{1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3});
    CHECK(values(params.all()[2].master) == Values{2, 2});
    CHECK(values({params.all()[2].master.data, {5}, DType::f32}) == Values{2, 2, 4, 4, 4});
    CHECK(params.decays()[first.offset / kDecayChunk] == 1);
    CHECK(params.decays()[params.all()[2].offset / kDecayChunk] == 0);
  }

  TEST_CASE("params: tensors point into the flat buffers, the padding is zero") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    declare(params);
    params.materialise(context, ParamStore::Use::training_with_ema);
    params.initialise(3);
    for (const Parameter& p : params.all()) {
      CHECK(p.master.as<float>() == params.master().as<float>() + p.offset);
      CHECK(p.gradient.as<float>() == params.gradient().as<float>() + p.offset);
      CHECK(p.compute.data == p.master.data);
      CHECK(p.master.shape == p.shape);
    }
    CHECK(!params.compute());
    CHECK(params.bytes() == 5 * params.master().bytes() +
                                static_cast<std::size_t>(params.flat_count() / kDecayChunk));
    Values flat = read(context.queue, params.master());
    for (const Parameter& p : params.all())
      std::fill_n(flat.begin() + p.offset, p.shape.count(), 0.0);
    CHECK(flat == Values(flat.size(), 0));
    for (const Tensor& zero : {params.gradient(), params.m(), params.v()})
      CHECK(read(context.queue, zero) == Values(flat.size(), 0));
  }

  TEST_CASE("params: inference takes the weights alone, training an average where asked") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore inference, training;
    declare(inference);
    declare(training);
    inference.materialise(context, ParamStore::Use::inference);
    training.materialise(context, ParamStore::Use::training);
    CHECK(!inference.gradient());
    CHECK(!inference.m());
    CHECK(!inference.ema());
    CHECK(!inference.all()[0].gradient);
    CHECK(inference.bytes() == inference.master().bytes());
    CHECK(training.v());
    CHECK(!training.ema());
  }

  TEST_CASE("params: decay goes to matrices but A_log and the norms, chunk by chunk") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    declare(params);
    params.materialise(context, ParamStore::Use::training);
    for (const Parameter& p : params.all()) {
      const bool wanted = p.name == "head.weight" || p.name == "mixer.x_proj" || p.name == "wide";
      INFO(p.name);
      CHECK(weight_decays(p) == wanted);
      const std::int64_t first = p.offset / kDecayChunk;
      const std::int64_t chunks = (p.shape.count() + kDecayChunk - 1) / kDecayChunk;
      for (std::int64_t i = first; i < first + chunks; ++i)
        CHECK(params.decays()[i] == (wanted ? 1 : 0));
    }
    Parameter p;
    p.shape = {4, 4};
    p.name = "norm.weight";  // a matrix that is no norm's
    CHECK(weight_decays(p));
    p.name = "A_log";
    CHECK(!weight_decays(p));
    p.name = "B_norm";
    CHECK(!weight_decays(p));
  }

  TEST_CASE("params: initial values have the bounds and the moments they should") {
    constexpr std::int64_t kCount = 100'000;
    const double root = std::sqrt(static_cast<double>(kCount));  // five deviations of each estimate
    const Moments uniform(draw(init_uniform(0.3), kCount));
    CHECK(uniform.low >= -0.3f);
    CHECK(uniform.high < 0.3f);
    CHECK(uniform.low < -0.2999);
    CHECK(uniform.high > 0.2999);
    CHECK(std::fabs(uniform.mean) < 5 * 0.3 / std::sqrt(3.0) / root);
    CHECK(std::fabs(uniform.deviation - 0.3 / std::sqrt(3.0)) < 5 * 0.3 / root);

    const Moments normal(draw(init_normal(0.02), kCount));
    CHECK(std::fabs(normal.mean) < 5 * 0.02 / root);
    CHECK(std::fabs(normal.deviation - 0.02) < 5 * 0.02 / std::sqrt(2.0) / root);
    CHECK(normal.high > 3.5 * 0.02);
    CHECK(normal.high < 6 * 0.02);
    CHECK(normal.low < -3.5 * 0.02);

    CHECK(draw(init_constant(-1.5), 100) == Values(100, -1.5));
    const Values counted =
        draw([](const InitDraw& draw) { return static_cast<double>(draw.element()); }, 70);
    for (std::size_t i = 0; i < counted.size(); ++i) CHECK(counted[i] == static_cast<double>(i));
  }

  TEST_CASE("params: initial values depend on seed, parameter and element alone") {
    Queue queue = CpuQueue(1), threads = CpuQueue(3);
    const Values values = master_of(queue, 9, DType::f32);
    CHECK(values == master_of(queue, 9, DType::f32));
    CHECK(values == master_of(threads, 9, DType::f32));
    CHECK(values == master_of(queue, 9, DType::f64));
    CHECK(values != master_of(queue, 10, DType::f32));
    CHECK(values != master_of(queue, 9 + (std::uint64_t{1} << 32), DType::f32));

    // The same shape and bound under another number starts elsewhere; more elements change nothing.
    Context context(queue, DType::f32);
    ParamStore params;
    params.add("a", {100}, init_uniform(1));
    params.add("b", {100}, init_uniform(1));
    params.materialise(context, ParamStore::Use::inference);
    params.initialise(9);
    const Values a = read(queue, params.all()[0].master), b = read(queue, params.all()[1].master);
    CHECK(a != b);
    ParamStore longer;
    longer.add("c", {1000}, init_uniform(1));
    longer.materialise(context, ParamStore::Use::inference);
    longer.initialise(9);
    const Values c = read(queue, longer.all()[0].master);
    CHECK(Values(c.begin(), c.begin() + 100) == a);
  }

  TEST_CASE("params: initialising again starts over, the average with it") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    declare(params);
    params.materialise(context, ParamStore::Use::training_with_ema);
    params.initialise(4);
    const Values first = read(context.queue, params.master());
    CHECK(read(context.queue, params.ema()) == first);
    perturb(context.queue, params, 1);
    CHECK(read(context.queue, params.master()) != first);
    params.initialise(4);
    CHECK(read(context.queue, params.master()) == first);
    CHECK(read(context.queue, params.ema()) == first);
  }

  TEST_CASE("params: a flat buffer is read and written whole") {
    Context context(CpuQueue(1), DType::f64);
    ParamStore params;
    declare(params);
    params.materialise(context, ParamStore::Use::training);
    params.initialise(4);
    const std::vector<std::byte> bytes = params.read(params.master());
    CHECK(bytes.size() == static_cast<std::size_t>(params.flat_count()) * 8);
    params.write(params.m(), bytes);
    CHECK(params.read(params.m()) == bytes);
    CHECK(params.read(params.v()) != bytes);
    expect_fault(Fault::usage, concat("[params] expected ", bytes.size(), " bytes, got 3"),
                 [&] { params.write(params.m(), std::vector<std::byte>(3)); });
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("params: a device starts from the CPU's weights, its compute copy is their rounding") {
    Queue cpu = CpuQueue(1), cuda = cuda_queue();
    const Values wanted = master_of(cpu, 9, DType::f32);
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      CHECK(master_of(cuda, 9, type) == wanted);
      Context context(cuda, type);
      ParamStore params;
      declare(params);
      params.materialise(context, ParamStore::Use::training);
      params.initialise(9);
      for (const Parameter& p : params.all()) {
        const Values master = read(cuda, p.master), compute = read(cuda, p.compute);
        CHECK(p.compute.dtype == type);
        CHECK(compute == (type == DType::f16    ? round_to<f16>(master)
                          : type == DType::bf16 ? round_to<bf16>(master)
                                                : master));
      }
    }
  }
}
#endif

}  // namespace fm::test
