#include <cmath>
#include <random>

#include "kernels/base/check.h"
#include "kernels/cross_entropy/cross_entropy_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  CrossEntropyShape shape;
  Values logits, labels;
  float loss_scale = 1024;

  explicit Problem(const CrossEntropyShape& s)
      : shape(s), logits(normals(s.rows * s.classes, 1, 3)) {
    std::mt19937 engine(2);
    for (std::int64_t i = 0; i < s.rows; ++i)
      labels.push_back(engine() % static_cast<unsigned>(s.classes));
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.logits = round_to<T>(logits);
    return p;
  }
};

struct Solve {
  template <class R, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const auto [rows, classes] = p.shape;
    Array<R, Q> logits(queue, p.logits), loss(queue, 1);
    Array<R, Q> scaled(queue, rows * classes), unscaled(queue, p.logits);
    Array<std::int32_t, Q> labels(queue, p.labels);
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(cross_entropy_workspace(rows)));
    Array<StepState, Q> state(queue, 1);
    StepState host;
    host.loss_scale = p.loss_scale;
    upload(queue, state.data(), &host, sizeof host);
    cross_entropy_forward(
        queue, CrossEntropyForward<R>{rows, classes, logits, labels, loss, workspace.data()});
    cross_entropy_backward(queue,
                           CrossEntropyBackward<R>{rows, classes, logits, labels, state, scaled});
    // In place.
    cross_entropy_backward(
        queue, CrossEntropyBackward<R>{rows, classes, unscaled, labels, nullptr, unscaled});
    return {{"loss", loss.values()},
            {"scaled gradient", scaled.values()},
            {"gradient", unscaled.values()}};
  }
};

template <class R, class Q>
Results solve(Q& queue, const Problem& p) {
  return Solve{}.operator()<R>(queue, p);
}

// NaN logits, labels out of range, and logits whose exponentials overflow.
template <class Q>
void check_extremes(Q& queue) {
  Problem p({4, 3});
  p.logits = {1000, 999, 0, 0, std::nan(""), 0, -1000, -1001, -1000, 1, 2, 3};
  p.labels = {0, 0, 2, 1};
  const auto finite = [&](const Values& gradient, int row) {
    bool all = true;
    for (int j = 0; j < 3; ++j) all = all && std::isfinite(gradient[row * 3 + j]);
    return all;
  };
  Results r = solve<float>(queue, p);
  CHECK(std::isnan(r.at("loss")[0]));
  for (int row : {0, 2, 3}) CHECK(finite(r.at("gradient"), row));
  CHECK(std::isnan(r.at("gradient")[3]));
  p.logits[4] = 0;
  CHECK(std::isfinite(solve<float>(queue, p).at("loss")[0]));
  for (double outside : {-1.0, 3.0}) {
    p.labels[1] = outside;
    r = solve<float>(queue, p);
    CHECK(std::isnan(r.at("loss")[0]));
    CHECK(!finite(r.at("gradient"), 1));
    for (int row : {0, 2, 3}) CHECK(finite(r.at("gradient"), row));
  }
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("cross_entropy: by hand") {
    Problem p({2, 3});
    p.logits = {0, 0, 0, std::log(1.0), std::log(2.0), std::log(5.0)};
    p.labels = {2, 1};
    const Results r = solve<double>(cpu_queue(), p);
    CHECK(r.at("loss")[0] == doctest::Approx((std::log(3.0) + std::log(4.0)) / 2).epsilon(1e-12));
    const Values want = {1 / 6.0, 1 / 6.0, -1 / 3.0, 1 / 16.0, -3 / 8.0, 5 / 16.0};
    expect_close("gradient", r.at("gradient"), want, 1e-12);
  }

  TEST_CASE("cross_entropy: the gradient is the loss's, times the loss scale") {
    for (const CrossEntropyShape& shape : {CrossEntropyShape{7, 3}, CrossEntropyShape{19, 33}}) {
      const Problem p(shape);
      const Results r = solve<double>(cpu_queue(), p);
      check_gradient("logits", p.logits, r.at("gradient"), [&](const Values& logits) {
        Problem moved = p;
        moved.logits = logits;
        return solve<double>(cpu_queue(), moved).at("loss")[0];
      });
      for (std::size_t i = 0; i < p.logits.size(); ++i)
        CHECK(r.at("scaled gradient")[i] == doctest::Approx(1024 * r.at("gradient")[i]));
    }
  }

  TEST_CASE("cross_entropy: extremes") {
    check_extremes(cpu_queue());
    Problem p({1, 3});
    p.shape.rows = 0;
    CHECK_THROWS_AS(solve<float>(cpu_queue(), p), Error);
  }

  TEST_CASE("cross_entropy: float agrees with double") {
    for (const CrossEntropyShape& shape : kCrossEntropyCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(solve<float>(cpu_queue(), p), solve<double>(cpu_queue(), p),
                   kCrossEntropyTolerance.f32);
    }
  }

  TEST_CASE("cross_entropy: the number of threads does not matter") {
    CpuQueue one(1), three(3);
    const Problem p({1000, 10});
    expect_same_bits(solve<float>(one, p), solve<float>(three, p));
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("cross_entropy: CUDA agrees with the CPU") {
    Solve by_kernels;
    for (const CrossEntropyShape& shape : kCrossEntropyCases)
      check_cuda_type<float>(Problem(shape), kCrossEntropyTolerance, by_kernels, cuda_queue());
    check_cuda_type<float>(Problem(kCrossEntropyClassifier), kCrossEntropyTolerance, by_kernels,
                           cuda_queue());
  }

  TEST_CASE("cross_entropy: extremes on CUDA") {
    check_extremes(cuda_queue());
  }
}
#endif

}  // namespace fm::test
