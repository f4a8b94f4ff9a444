#include <algorithm>
#include <random>

#include "kernels/base/check.h"
#include "kernels/flow/flow_cases.h"
#include "kernels/flow/flow_sample.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// Array converts from double; a step's state travels as it is.
template <class Q>
struct DeviceState {
  Array<StepState, Q> memory;
  DeviceState(Q& queue, const StepState& state) : memory(queue, 1) {
    upload(queue, memory.data(), &state, sizeof state);
  }
};

struct Data {
  FlowShape shape;
  Values pixels, labels;

  explicit Data(const FlowShape& s) : shape(s) {
    std::mt19937 engine(3);
    for (std::int64_t i = 0; i < s.images * s.pixels; ++i) pixels.push_back(engine() % 256);
    for (std::int64_t i = 0; i < s.images; ++i) labels.push_back(engine() % 10);
  }
};

struct Draw {
  std::uint64_t step = 0, seed = 7;
  TimeSampling time = TimeSampling::uniform;
  float label_drop = 0.25f;
};

template <class R, class Q>
Results batch(Q& queue, const Data& data, const Draw& draw) {
  const FlowShape& s = data.shape;
  Array<std::uint8_t, Q> pixels(queue, data.pixels), labels(queue, data.labels);
  Array<R, Q> x_t(queue, s.batch * s.pixels), target(queue, s.batch * s.pixels), t(queue, s.batch);
  Array<std::int32_t, Q> batch_labels(queue, s.batch);
  StepState state;
  state.step = draw.step;
  DeviceState<Q> on_device(queue, state);
  flow_batch(queue, FlowBatch<R>{.batch = s.batch,
                                 .images = s.images,
                                 .pixels = s.pixels,
                                 .data = pixels,
                                 .labels = labels,
                                 .state = on_device.memory,
                                 .seed = draw.seed,
                                 .time_sampling = draw.time,
                                 .classes = 10,
                                 .label_drop = draw.label_drop,
                                 .x_t = x_t,
                                 .target = target,
                                 .t = t,
                                 .batch_labels = batch_labels});
  return {{"x_t", x_t.values()},
          {"target", target.values()},
          {"t", t.values()},
          {"labels", batch_labels.values()}};
}

struct Path {
  FlowShape shape;
  Values x0, x1, t, v;
  float loss_scale = 1024;

  explicit Path(const FlowShape& s)
      : shape(s),
        x0(normals(s.batch * s.pixels, 1)),
        x1(normals(s.batch * s.pixels, 2)),
        t(normals(s.batch, 3, 0.1, 0.5)),
        v(normals(s.batch * s.pixels, 4)) {}

  template <class T>
  Path rounded() const {
    Path p = *this;
    p.x0 = round_to<T>(x0);
    p.x1 = round_to<T>(x1);
    p.t = round_to<T>(t);
    p.v = round_to<T>(v);
    return p;
  }
};

struct Solve {
  template <class R, class Q>
  Results operator()(Q& queue, const Path& p) const {
    const std::int64_t count = p.shape.batch * p.shape.pixels;
    Array<R, Q> x0(queue, p.x0), x1(queue, p.x1), t(queue, p.t), v(queue, p.v);
    Array<R, Q> x_t(queue, count), target(queue, count), loss(queue, 1), dv(queue, count);
    Array<R, Q> unscaled(queue, count);
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(flow_loss_workspace(count)));
    StepState state;
    state.loss_scale = p.loss_scale;
    DeviceState<Q> on_device(queue, state);
    flow_interpolate(queue,
                     FlowInterpolate<R>{p.shape.batch, p.shape.pixels, x0, x1, t, x_t, target});
    flow_loss_forward(queue, FlowLossForward<R>{count, v, target, loss, workspace.data()});
    flow_loss_backward(queue, FlowLossBackward<R>{count, v, target, on_device.memory, dv});
    flow_loss_backward(queue, FlowLossBackward<R>{count, v, target, nullptr, unscaled});
    return {{"x_t", x_t.values()},
            {"target", target.values()},
            {"loss", loss.values()},
            {"dv", dv.values()},
            {"unscaled dv", unscaled.values()}};
  }
};

// The image of the data set at place b: found by its pixels, which x_t and target give back.
std::int64_t image_at(const Data& data, const Results& r, int b) {
  const FlowShape& s = data.shape;
  const double t = r.at("t")[b];
  for (std::int64_t image = 0; image < s.images; ++image) {
    bool same = true;
    for (std::int64_t i = 0; i < s.pixels && same; ++i) {
      const double x1 = r.at("x_t")[b * s.pixels + i] + (1 - t) * r.at("target")[b * s.pixels + i];
      same = std::fabs((x1 + 1) * 127.5 - data.pixels[image * s.pixels + i]) < 1e-6;
    }
    if (same) return image;
  }
  return -1;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("flow: an epoch shows each image at most once and drops the remainder") {
    const Data data({4, 12, 23});
    std::vector<std::int64_t> orders[2];
    for (std::uint64_t step = 0; step < 10; ++step) {  // 23 / 4 = 5 batches an epoch
      const Results r = batch<double>(cpu_queue(), data, {.step = step});
      for (int b = 0; b < 4; ++b) {
        const std::int64_t image = image_at(data, r, b);
        REQUIRE(image >= 0);
        orders[step / 5].push_back(image);
        const double label = r.at("labels")[b];
        CHECK((label == data.labels[image] || label == 10));
        const Permutation order(23, 7, step / 5);
        CHECK(image == static_cast<std::int64_t>(order(step % 5 * 4 + b)));
      }
    }
    CHECK(orders[0] != orders[1]);
    for (auto& order : orders) {
      std::sort(order.begin(), order.end());
      CHECK(std::adjacent_find(order.begin(), order.end()) == order.end());
    }
  }

  TEST_CASE("flow: noise, times and dropped labels have the distributions they should have") {
    const Data data({64, 196, 64});
    double noise = 0, square = 0, dropped = 0, count = 0;
    double t_sum = 0, t_square = 0, logit_sum = 0, logit_square = 0, images = 0;
    for (std::uint64_t step = 0; step < 64; ++step) {
      const Results r = batch<double>(cpu_queue(), data, {.step = step});
      const Results logit =
          batch<double>(cpu_queue(), data, {.step = step, .time = TimeSampling::logit_normal});
      for (int b = 0; b < 64; ++b) {
        const double t = r.at("t")[b], z = std::log(logit.at("t")[b] / (1 - logit.at("t")[b]));
        REQUIRE(t > 0);
        REQUIRE(t < 1);
        t_sum += t - 0.5;
        t_square += (t - 0.5) * (t - 0.5);
        logit_sum += z;
        logit_square += z * z;
        dropped += r.at("labels")[b] == 10;
        images += 1;
        for (int i = 0; i < 196; ++i, count += 1) {
          const double x0 = r.at("x_t")[b * 196 + i] - t * r.at("target")[b * 196 + i];
          noise += x0;
          square += x0 * x0;
        }
      }
    }
    // 4.5 standard deviations of each mean.
    CHECK(std::fabs(noise / count) <= 4.5 / std::sqrt(count));
    CHECK(std::fabs(square / count - 1) <= 4.5 * std::sqrt(2 / count));
    CHECK(std::fabs(t_sum / images) <= 4.5 * std::sqrt(1 / 12.0 / images));
    CHECK(std::fabs(t_square / images - 1 / 12.0) <= 4.5 * std::sqrt(1 / 180.0 / images));
    CHECK(std::fabs(logit_sum / images) <= 4.5 / std::sqrt(images));
    CHECK(std::fabs(logit_square / images - 1) <= 4.5 * std::sqrt(2 / images));
    CHECK(std::fabs(dropped / images - 0.25) <= 4.5 * std::sqrt(0.25 * 0.75 / images));
  }

  TEST_CASE("flow: steps and seeds differ; a label is never or always dropped at 0 and 1") {
    const Data data({8, 5, 8});
    const Results base = batch<float>(cpu_queue(), data, {});
    for (const Draw& other : {Draw{.step = 1}, Draw{.seed = 8}}) {
      const Results r = batch<float>(cpu_queue(), data, other);
      for (const char* name : {"x_t", "target", "t"}) CHECK(r.at(name) != base.at(name));
    }
    const Results never = batch<float>(cpu_queue(), data, {.label_drop = 0});
    for (double label : never.at("labels")) CHECK(label < 10);
    const Results always = batch<float>(cpu_queue(), data, {.label_drop = 1});
    for (double label : always.at("labels")) CHECK(label == 10);
  }

  TEST_CASE("flow: float and double see the same batch") {
    for (const FlowShape& shape : kFlowCases)
      for (TimeSampling time : {TimeSampling::uniform, TimeSampling::logit_normal}) {
        const Data data(shape);
        const Draw draw{.step = 11, .time = time};
        const Results f = batch<float>(cpu_queue(), data, draw);
        const Results d = batch<double>(cpu_queue(), data, draw);
        CHECK(f.at("t") == d.at("t"));
        CHECK(f.at("labels") == d.at("labels"));
        expect_close(f, d, kFlowTolerance.f32);
      }
  }

  TEST_CASE("flow: a batch without labels") {
    const Data data({2, 4, 2});
    Array<std::uint8_t, CpuQueue> pixels(cpu_queue(), data.pixels);
    Array<float, CpuQueue> x_t(cpu_queue(), 8), target(cpu_queue(), 8), t(cpu_queue(), 2);
    const StepState state;
    FlowBatch<float> p{.batch = 2,
                       .images = 2,
                       .pixels = 4,
                       .data = pixels,
                       .labels = nullptr,
                       .state = &state,
                       .seed = 7,
                       .time_sampling = TimeSampling::uniform,
                       .classes = 0,
                       .label_drop = 0,
                       .x_t = x_t,
                       .target = target,
                       .t = t,
                       .batch_labels = nullptr};
    flow_batch(cpu_queue(), p);
    CHECK(x_t.values() == batch<float>(cpu_queue(), data, {}).at("x_t"));
    p.images = 1;
    CHECK_THROWS_AS(flow_batch(cpu_queue(), p), Error);
    p.images = 2;
    p.labels = pixels;
    CHECK_THROWS_AS(flow_batch(cpu_queue(), p), Error);
  }

  TEST_CASE("flow: the path runs from noise to data") {
    Path p({3, 5, 3});
    p.t = {0, 0.25, 1};
    const Results r = Solve{}.operator()<double>(cpu_queue(), p);
    for (int i = 0; i < 5; ++i) {
      CHECK(r.at("x_t")[i] == p.x0[i]);
      CHECK(r.at("x_t")[5 + i] == doctest::Approx(0.75 * p.x0[5 + i] + 0.25 * p.x1[5 + i]));
      CHECK(r.at("x_t")[10 + i] == p.x1[10 + i]);
      CHECK(r.at("target")[i] == p.x1[i] - p.x0[i]);
    }
  }

  TEST_CASE("flow: loss and its gradient") {
    const Path p({3, 1700, 3});  // two pieces of the sum
    const Solve solve;
    const Results r = solve.operator()<double>(cpu_queue(), p);
    double want = 0;
    for (std::size_t i = 0; i < p.v.size(); ++i)
      want += std::pow(p.v[i] - (p.x1[i] - p.x0[i]), 2) / static_cast<double>(p.v.size());
    CHECK(r.at("loss")[0] == doctest::Approx(want).epsilon(1e-12));
    check_gradient("v", p.v, r.at("unscaled dv"), [&](const Values& v) {
      Path moved = p;
      moved.v = v;
      return solve.operator()<double>(cpu_queue(), moved).at("loss")[0];
    });
    for (std::size_t i = 0; i < p.v.size(); i += 97)
      CHECK(r.at("dv")[i] == doctest::Approx(1024 * r.at("unscaled dv")[i]));
  }

  TEST_CASE("flow: float agrees with double") {
    for (const FlowShape& shape : kFlowCases) {
      const Path p = Path(shape).rounded<float>();
      const Solve solve;
      expect_close(solve.operator()<float>(cpu_queue(), p),
                   solve.operator()<double>(cpu_queue(), p), kFlowTolerance.f32);
    }
  }

  TEST_CASE("flow: the number of threads does not matter") {
    CpuQueue one(1), three(3);
    const Path p = Path({16, 784, 16}).rounded<float>();
    const Data data({16, 784, 40});
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
    expect_same_bits(batch<float>(one, data, {}), batch<float>(three, data, {}));
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("flow: CUDA makes the CPU's batch, to the last bit") {
    auto check = [](const Data& data, const Draw& draw) {
      const Results cpu = batch<float>(cpu_queue(), data, draw);
      expect_same_bits(batch<float>(cuda_queue(), data, draw), cpu);
    };
    for (const FlowShape& shape : kFlowCases) {
      const Data data(shape);
      for (TimeSampling time : {TimeSampling::uniform, TimeSampling::logit_normal})
        for (std::uint64_t step : {0, 1, 1000})
          check(data, {.step = step, .seed = 0xfedcba9876543210ULL, .time = time});
    }
    const Data paper({kFlowPaper.batch, kFlowPaper.pixels, 6000});
    check(paper, {.step = 22});
    check(paper, {.step = 23, .time = TimeSampling::logit_normal});
  }

  TEST_CASE("flow: CUDA agrees with the CPU on the path and the loss") {
    auto check = [](const FlowShape& shape) {
      Solve solve;
      const Path p(shape);
      check_cuda_type<float>(p, kFlowTolerance, solve, cuda_queue());
      const Path rounded = p.rounded<float>();
      const Results cpu = solve.operator()<float>(cpu_queue(), rounded);
      const Results gpu = solve.operator()<float>(cuda_queue(), rounded);
      for (const char* name : {"x_t", "target"})
        expect_same_bits({{name, gpu.at(name)}}, {{name, cpu.at(name)}});
    };
    for (const FlowShape& shape : kFlowCases) check(shape);
    check(kFlowPaper);
    check({1023, 2049, 1});  // every thread of the sum takes more than one group
  }
}
#endif

}  // namespace fm::test
