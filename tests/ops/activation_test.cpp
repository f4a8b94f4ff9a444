#include "kernels/activation/activation_cases.h"
#include "kernels/base/fast_math.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  Values x, dy;

  explicit Problem(std::int64_t count) : x(normals(count, 1, 3)), dy(normals(count, 2)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<T>(x);
    p.dy = round_to<T>(dy);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const auto count = static_cast<std::int64_t>(p.x.size());
    Array<T, Q> x(queue, p.x), dy(queue, p.dy), y(queue, count), dx(queue, count);
    silu_forward(queue, SiluForward<T>{count, x, y});
    silu_backward(queue, SiluBackward<T>{count, x, dy, dx});
    silu_backward(queue, SiluBackward<T>{count, x, dy, dy});
    silu_forward(queue, SiluForward<T>{count, x, x});
    return {{"y", y.values()},
            {"dx", dx.values()},
            {"y in place", x.values()},
            {"dx in place", dy.values()}};
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("silu: gradient against central differences") {
    const Problem p(53);
    const Solve solve;
    const Results r = solve.operator()<double>(cpu_queue(), p);
    check_gradient("x", p.x, r.at("dx"), [&](const Values& x) {
      Problem moved = p;
      moved.x = x;
      return dot(solve.operator()<double>(cpu_queue(), moved).at("y"), p.dy);
    });
  }

  TEST_CASE("silu: float agrees with double") {
    for (const std::int64_t count : kSiluCases) {
      const Problem p = Problem(count).rounded<float>();
      const Solve solve;
      const Results got = solve.operator()<float>(cpu_queue(), p);
      expect_close(got, solve.operator()<double>(cpu_queue(), p), kSiluTolerance.f32);
      CHECK(got.at("y") == got.at("y in place"));
      CHECK(got.at("dx") == got.at("dx in place"));
    }
  }

  TEST_CASE("silu: the limits") {
    Problem p(4);
    p.x = {-1000, -100, 100, 1000};
    p.dy = {1, 1, 1, 1};
    const Results r = Solve{}.operator()<float>(cpu_queue(), p);
    const Values y{0, 0, 100, 1000}, dx{0, 0, 1, 1};
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::fabs(r.at("y")[i] - y[i]) < 1e-30);
      CHECK(std::fabs(r.at("dx")[i] - dx[i]) < 1e-30);
    }
  }

  TEST_CASE("silu: a count of zero is refused") {
    CHECK_THROWS_AS(Solve{}.operator()<double>(cpu_queue(), Problem(0)), Error);
  }

  TEST_CASE("fast_exp: within 2 ulp of exp, gradual underflow, infinity and NaN") {
    double worst = 0;
    for (float x = -104; x < 88.7f; x += 0.00137f) {
      const double want = std::exp(static_cast<double>(x));
      const double ulp = std::ldexp(1.0, std::max(std::ilogb(want), -126) - 23);
      worst = std::max(worst, std::fabs(static_cast<double>(fast_exp(x)) - want) / ulp);
    }
    CHECK(worst <= 2);
    CHECK(fast_exp(0.0f) == 1);
    CHECK(fast_exp(-200.0f) == 0);
    CHECK(fast_exp(89.0f) == std::numeric_limits<float>::infinity());
    CHECK(fast_exp(-std::numeric_limits<float>::infinity()) == 0);
    CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
    CHECK(fast_sigmoid(-200.0f) == 0);
    CHECK(fast_sigmoid(200.0f) == 1);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("silu: CUDA agrees with the CPU") {
    for (const std::int64_t count : kSiluCases) check_cuda(Problem(count), kSiluTolerance, Solve{});
  }
}
#endif

}  // namespace fm::test
