#include <limits>

#include "kernels/adamw/adamw_cases.h"
#include "kernels/base/check.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Parameters and optimizer on a queue, stepped one gradient at a time.
template <class T, class Q>
class Optimizer {
  using A = acc_t<T>;

 public:
  Optimizer(Q& queue, const OptimizerSettings& settings, const Values& weights,
            const Values& decays, float loss_scale, int ring_size = 4)
      : queue_(queue),
        settings_(settings),
        count_(static_cast<std::int64_t>(weights.size())),
        ring_size_(ring_size),
        master_(queue, weights),
        m_(queue, Values(weights.size(), 0)),
        v_(queue, Values(weights.size(), 0)),
        ema_(queue, weights),
        norm_(queue, 1),
        compute_(queue, weights),
        decays_(queue, decays),
        state_(queue, 1),
        ring_(queue, ring_size),
        workspace_(queue, static_cast<std::int64_t>(optimizer_prepare_workspace(count_))) {
    StepState state;
    state.loss_scale = loss_scale;
    upload(queue_, state_.data(), &state, sizeof state);
  }

  // `gradient` is unscaled.
  void step(const Values& gradient, double loss) {
    Values scaled = gradient;
    const double scale = state().loss_scale;
    for (double& g : scaled) g *= scale;
    Array<A, Q> grad(queue_, scaled), loss_on_device(queue_, Values{loss});
    optimizer_prepare(queue_,
                      OptimizerPrepare<A>{count_, grad, loss_on_device, settings_, state_.data(),
                                          ring_.data(), ring_size_, norm_, workspace_.data()});
    adamw_update(queue_, AdamWUpdate<T>{count_, grad, master_, m_, v_, ema_, compute_, decays_,
                                        settings_, state_.data()});
    synchronize(queue_);
  }

  StepState state() const {
    StepState state;
    download(queue_, &state, state_.data(), sizeof state);
    return state;
  }
  StepRecord record(std::uint64_t step) const {
    std::vector<StepRecord> ring(static_cast<std::size_t>(ring_size_));
    download(queue_, ring.data(), ring_.data(), ring_.bytes());
    return ring[step % ring.size()];
  }
  double norm() const { return norm_.values()[0]; }
  Results weights() const {
    return {{"master", master_.values()},
            {"m", m_.values()},
            {"v", v_.values()},
            {"ema", ema_.values()},
            {"compute", compute_.values()}};
  }

 private:
  Q& queue_;
  OptimizerSettings settings_;
  std::int64_t count_;
  int ring_size_;
  Array<A, Q> master_, m_, v_, ema_, norm_;
  Array<T, Q> compute_;
  Array<std::uint8_t, Q> decays_;
  Array<StepState, Q> state_;
  Array<StepRecord, Q> ring_;
  Bytes<Q> workspace_;
};

// Several steps with finite gradients, some of them above the clip norm.
struct Problem {
  static constexpr int kSteps = 7;
  OptimizerSettings settings;
  float loss_scale = 1024;
  Values weights, decays, gradients[kSteps];

  explicit Problem(std::int64_t count) : weights(normals(count, 1)) {
    settings.lr = 1e-2f;
    settings.warmup_steps = 4;
    settings.cooldown_steps = 3;
    settings.total_steps = kSteps + 1;  // so that the last step has two thirds of lr
    settings.weight_decay = 0.125f;
    settings.ema_decay = 0.3f;  // reached at the third update, where (1 + n) / (10 + n) is 0.308
    settings.steps_per_epoch = 3;
    for (std::int64_t i = 0; i < count / kDecayChunk; ++i) decays.push_back(i % 3 != 1);
    const double unit = 1 / std::sqrt(static_cast<double>(count));
    for (int s = 0; s < kSteps; ++s)
      gradients[s] = normals(count, 10 + static_cast<unsigned>(s), (s % 2 ? 0.3 : 4) * unit);
  }
  static double loss(int step) { return 1.0 / (1 << step); }

  template <class T>
  Problem rounded() const {  // masters and gradients are float, whatever T is
    Problem p = *this;
    p.weights = round_to<acc_t<T>>(weights);
    for (Values& g : p.gradients) g = round_to<acc_t<T>>(g);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Optimizer<T, Q> optimizer(queue, p.settings, p.weights, p.decays, p.loss_scale);
    Values norms;
    for (int s = 0; s < Problem::kSteps; ++s) {
      optimizer.step(p.gradients[s], Problem::loss(s));
      norms.push_back(optimizer.norm());
    }
    Results r = optimizer.weights();
    const StepState s = optimizer.state();
    r["norms"] = norms;
    r["counters"] = {static_cast<double>(s.step), static_cast<double>(s.adam_steps),
                     static_cast<double>(s.good_steps), static_cast<double>(s.skipped_in_row),
                     static_cast<double>(s.overflow)};
    r["epoch loss"] = {s.epoch_loss_sum};
    r["factor"] = {s.grad_factor};
    r["lr"] = {s.lr};
    r["corrections"] = {s.bias_correction1, s.bias_correction2};
    r["ema decay"] = {s.ema_decay};
    return r;
  }
};

// The same by a plain loop, with nothing of the engine in it.
Results expected(const Problem& p) {
  const OptimizerSettings& o = p.settings;
  Values w = p.weights, ema = w, m(w.size(), 0), v(w.size(), 0), norms;
  double lr = 0, factor = 0, correction1 = 0, correction2 = 0, decay = 0;
  for (int step = 0; step < Problem::kSteps; ++step) {
    const int n = step + 1;
    double squares = 0;
    for (double g : p.gradients[step]) squares += g * g;
    norms.push_back(std::sqrt(squares));
    factor = 1;
    if (o.clip > 0 && norms.back() > o.clip) factor = o.clip / (norms.back() + 1e-6);
    lr = n < o.warmup_steps ? static_cast<double>(o.lr) * n / o.warmup_steps : o.lr;
    if (o.total_steps - step < o.cooldown_steps)
      lr *= static_cast<double>(o.total_steps - step) / o.cooldown_steps;
    correction1 = 1 - std::pow(o.beta1, n);
    correction2 = 1 - std::pow(o.beta2, n);
    decay = std::min<double>(o.ema_decay, (1.0 + n) / (10.0 + n));
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double g = factor * p.gradients[step][i];
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      const double direction = m[i] / correction1 / (std::sqrt(v[i] / correction2) + o.eps);
      const double wd = p.decays[i / kDecayChunk] != 0 ? o.weight_decay : 0;
      w[i] -= lr * (direction + wd * w[i]);
      ema[i] = decay * ema[i] + (1 - decay) * w[i];
    }
  }
  const double epoch_loss = Problem::loss(6);  // steps 0-2, 3-5, 6
  return {{"master", w},
          {"m", m},
          {"v", v},
          {"ema", ema},
          {"compute", w},
          {"norms", norms},
          {"counters", {7, 7, 0, 0, 0}},
          {"epoch loss", {epoch_loss}},
          {"factor", {factor / p.loss_scale}},
          {"lr", {lr}},
          {"corrections", {correction1, correction2}},
          {"ema decay", {decay}}};
}

template <class T, class Q>
void check_overflow(Q& queue, double poison) {
  CAPTURE(poison);
  Problem p = Problem(448).rounded<T>();
  p.settings.dynamic_scale = true;
  Optimizer<T, Q> optimizer(queue, p.settings, p.weights, p.decays, 1024);
  optimizer.step(p.gradients[0], 1);
  const Results before = optimizer.weights();
  Values bad = p.gradients[1];
  bad[447] = poison;
  for (int skipped = 1; skipped <= 3; ++skipped) {
    optimizer.step(bad, 0.5);
    const StepState s = optimizer.state();
    expect_same_bits(optimizer.weights(), before);
    CHECK(s.overflow == 1);
    CHECK(s.skipped_in_row == skipped);
    CHECK(s.adam_steps == 1);
    CHECK(s.step == 1u + skipped);
    CHECK(s.good_steps == 0);
    CHECK(s.loss_scale == std::ldexp(1024, -skipped));
    CHECK(optimizer.record(skipped).loss_scale == std::ldexp(1024, 1 - skipped));
    CHECK(optimizer.record(skipped).overflow == 1);
    CHECK(optimizer.record(skipped).skipped_in_row == skipped);
    CHECK(!std::isfinite(optimizer.record(skipped).grad_norm));
  }
  optimizer.step(p.gradients[2], 0.5);
  const StepState s = optimizer.state();
  CHECK(s.overflow == 0);
  CHECK(s.skipped_in_row == 0);
  CHECK(s.adam_steps == 2);
  CHECK(s.bias_correction1 == doctest::Approx(1 - 0.9 * 0.9));
  CHECK(s.loss_scale == 128);
  const Results after = optimizer.weights();
  CHECK(after.at("master") != before.at("master"));
  for (double w : after.at("master")) REQUIRE(std::isfinite(w));
}

template <class T, class Q>
void check_fixed_scale(Q& queue) {
  const Problem p = Problem(448).rounded<T>();
  Optimizer<T, Q> optimizer(queue, p.settings, p.weights, p.decays, 1);
  const Results before = optimizer.weights();
  Values bad = p.gradients[0];
  bad[3] = std::numeric_limits<double>::quiet_NaN();
  optimizer.step(bad, 1);
  expect_same_bits(optimizer.weights(), before);
  CHECK(optimizer.state().overflow == 1);
  CHECK(optimizer.state().loss_scale == 1);
}

template <class T, class Q>
void check_scale(Q& queue) {
  const Problem p = Problem(64).rounded<T>();
  OptimizerSettings settings = p.settings;
  settings.dynamic_scale = true;
  settings.scale_growth_every = 3;
  Optimizer<T, Q> growing(queue, settings, p.weights, p.decays, 0x1p22f);
  const float want[] = {22, 22, 23, 23, 23, 24, 24, 24, 24};  // then the ceiling
  for (float exponent : want) {
    growing.step(p.gradients[0], 1);
    CHECK(growing.state().loss_scale == std::exp2(exponent));
  }
  Optimizer<T, Q> falling(queue, settings, p.weights, p.decays, 0x1p-22f);
  for (float exponent : {-23, -24, -24}) {
    falling.step(Values(64, kInfinity), 1);
    CHECK(falling.state().loss_scale == std::exp2(exponent));
  }
  // A bad step starts the count of good ones anew.
  Optimizer<T, Q> mixed(queue, settings, p.weights, p.decays, 1024);
  for (int good : {1, 1, 0, 1, 1}) mixed.step(good ? p.gradients[0] : Values(64, kInfinity), 1);
  CHECK(mixed.state().loss_scale == 512);
  CHECK(mixed.state().good_steps == 2);
  mixed.step(p.gradients[0], 1);
  CHECK(mixed.state().loss_scale == 1024);
  CHECK(mixed.state().good_steps == 0);
}

template <class T, class Q>
void check_records(Q& queue) {
  const Problem p = Problem(64).rounded<T>();
  Optimizer<T, Q> optimizer(queue, p.settings, p.weights, p.decays, 1024, 4);
  for (int s = 0; s < 6; ++s) optimizer.step(p.gradients[s], Problem::loss(s));
  for (std::uint64_t s : {2, 3, 4, 5}) {  // the last four
    const StepRecord r = optimizer.record(s);
    double squares = 0;
    for (double g : p.gradients[s]) squares += g * g;
    CHECK(r.step == s);
    CHECK(r.loss == static_cast<float>(Problem::loss(static_cast<int>(s))));
    CHECK(r.grad_norm == doctest::Approx(std::sqrt(squares)));
    CHECK(r.loss_scale == 1024);
    CHECK(r.lr == doctest::Approx(0.01 * std::min(1.0, (s + 1) / 4.0)));
    CHECK(r.overflow == 0);
    CHECK(r.skipped_in_row == 0);
  }
  // Epochs of three steps: 1 + 1/2 + 1/4, then 1/8, 1/8 + 1/16, 1/8 + 1/16 + 1/32.
  CHECK(optimizer.record(2).epoch_loss_sum == 1.75);
  CHECK(optimizer.record(3).epoch_loss_sum == 0.125);
  CHECK(optimizer.record(4).epoch_loss_sum == 0.1875);
  CHECK(optimizer.record(5).epoch_loss_sum == 0.21875);
}

}  // namespace

TEST_SUITE("cpu") {
  // The engine keeps clip factor, corrections and learning rate in float: 2^-24 each.
  TEST_CASE("adamw: double agrees with a plain loop") {
    for (std::int64_t count : {64, 448, 64 * 1001})
      for (float clip : {1.0f, 0.0f}) {
        CAPTURE(clip);
        Problem p(count);
        p.settings.clip = clip;
        expect_close(Solve{}.operator()<double>(cpu_queue(), p), expected(p), 3e-7);
      }
  }

  TEST_CASE("adamw: float agrees with double") {
    for (std::int64_t count : kAdamWCases) {
      const Problem p = Problem(count).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p),
                   Solve{}.operator()<double>(cpu_queue(), p), kAdamWTolerance.f32);
    }
  }

  TEST_CASE("adamw: a parameter without a gradient stays where weight decay does not reach") {
    Problem p(128);
    p.decays = {0, 1};
    for (Values& g : p.gradients) std::fill(g.begin(), g.end(), 0.0);
    const Results r = Solve{}.operator()<float>(cpu_queue(), p.rounded<float>());
    for (int i = 0; i < 64; ++i) {
      CHECK(r.at("master")[i] == static_cast<float>(p.weights[i]));
      CHECK(std::fabs(r.at("master")[64 + i]) < std::fabs(p.weights[64 + i]));
    }
  }

  TEST_CASE("adamw: without EMA and compute copy nothing else changes") {
    const Problem p = Problem(128).rounded<float>();
    CpuQueue& queue = cpu_queue();
    Array<float, CpuQueue> grad(queue, p.gradients[0]);
    Values results[2];
    for (int with : {0, 1}) {
      Array<float, CpuQueue> master(queue, p.weights), m(queue, Values(128, 0)),
          v(queue, Values(128, 0)), ema(queue, 128), compute(queue, 128);
      Array<std::uint8_t, CpuQueue> decays(queue, p.decays);
      StepState state;
      state.grad_factor = state.lr = 0.5f;
      adamw_update(queue,
                   AdamWUpdate<float>{128, grad, master, m, v, with ? ema.data() : nullptr,
                                      with ? compute.data() : nullptr, decays, p.settings, &state});
      results[with] = master.values();
    }
    CHECK(results[0] == results[1]);
  }

  TEST_CASE("adamw: an overflow skips the step and halves the scale") {
    for (double poison : {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()}) {
      check_overflow<float>(cpu_queue(), poison);
      check_overflow<double>(cpu_queue(), poison);
    }
    check_overflow<float>(cpu_queue(), 1e17);  // times 1024: its square is beyond float
  }

  TEST_CASE("adamw: a fixed scale skips bad steps, too") {
    check_fixed_scale<float>(cpu_queue());
  }

  TEST_CASE("adamw: the loss scale grows, falls and stays in range") {
    check_scale<float>(cpu_queue());
    check_scale<double>(cpu_queue());
  }

  TEST_CASE("adamw: the ring holds the last steps, the epoch's loss starts anew") {
    check_records<float>(cpu_queue());
  }

  TEST_CASE("adamw: the number of threads does not matter") {
    CpuQueue one(1), three(3);
    const Problem p = Problem(64 * 1001).rounded<float>();
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("adamw: counts and settings outside the contract are refused") {
    const Problem p(64);
    CHECK_THROWS_AS((Optimizer<float, CpuQueue>(cpu_queue(), p.settings, Values(63, 1), {1}, 1)
                         .step(Values(63, 1), 1)),
                    Error);
    OptimizerSettings settings = p.settings;
    settings.steps_per_epoch = 0;
    CHECK_THROWS_AS(
        (Optimizer<float, CpuQueue>(cpu_queue(), settings, p.weights, {1}, 1).step(p.weights, 1)),
        Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("adamw: CUDA agrees with the CPU") {
    for (std::int64_t count : kAdamWCases) check_cuda(Problem(count), kAdamWTolerance, Solve{});
    Solve solve;
    check_cuda_type<f16>(Problem(kAdamWPaper), kAdamWTolerance, solve, cuda_queue());
  }

  TEST_CASE("adamw: the master weights of 16-bit training are those of float training") {
    const Problem p = Problem(64 * 1001).rounded<float>();
    Results f = Solve{}.operator()<float>(cuda_queue(), p);
    Results h = Solve{}.operator()<f16>(cuda_queue(), p);
    CHECK(round_to<f16>(f.at("compute")) == h.at("compute"));
    f.erase("compute");
    h.erase("compute");
    expect_same_bits(f, h);
  }

  TEST_CASE("adamw on CUDA: an overflow skips the step and halves the scale") {
    for (double poison : {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN(), 1e17})
      check_overflow<f16>(cuda_queue(), poison);
    check_fixed_scale<float>(cuda_queue());
  }

  TEST_CASE("adamw on CUDA: loss scale and records") {
    check_scale<f16>(cuda_queue());
    check_records<f16>(cuda_queue());
  }
}
#endif

}  // namespace fm::test
