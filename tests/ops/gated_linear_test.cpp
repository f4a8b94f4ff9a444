#include "kernels/gated_linear/gated_linear_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  GatedLinearShape shape;
  Values x, w, bias, dy;

  explicit Problem(const GatedLinearShape& s)
      : shape(s),
        x(normals(s.rows * s.in, 1)),
        w(normals(std::int64_t{2} * s.hidden * s.in, 2, 1.5 / std::sqrt(s.in))),
        bias(normals(std::int64_t{2} * s.hidden, 3, 0.5)),
        dy(normals(s.rows * s.hidden, 4)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<T>(x);
    p.w = round_to<T>(w);
    p.bias = round_to<T>(bias);
    p.dy = round_to<T>(dy);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const std::int64_t count = p.shape.rows * p.shape.hidden;
    Array<T, Q> x(queue, p.x), w(queue, p.w), bias(queue, p.bias), dy(queue, p.dy);
    Array<T, Q> y(queue, count), y_again(queue, count), dab(queue, 2 * count);
    Array<T, Q> dab_in_place(queue, 2 * count);
    const bool keeps = gated_linear_keeps_ab<T>(queue, p.shape);
    for (T* ab : {dab.data(), dab_in_place.data()})
      gated_linear_forward(queue,
                           GatedLinearForward<T>{p.shape, x, w, bias, keeps ? ab : nullptr, y});
    GatedLinearBackward<T> backward{p.shape, x, w, bias, dy, dab, y_again};
    gated_linear_backward(queue, backward);
    backward.dab = dab_in_place;
    backward.y = dy;
    gated_linear_backward(queue, backward);
    return {{"y", y.values()},
            {"dab", dab.values()},
            {"y again", y_again.values()},
            {"dab in place", dab_in_place.values()},
            {"y in place", dy.values()}};
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  // The gradient of the bias is the column sum of (da, db).
  TEST_CASE("gated_linear: gradient against central differences") {
    const Problem p({7, 16, 24});
    const Values dab = solve_double(p).at("dab");
    Values dbias(p.bias.size(), 0.0);
    for (std::size_t i = 0; i < dab.size(); ++i) dbias[i % dbias.size()] += dab[i];
    check_gradient("bias", p.bias, dbias, [&](const Values& bias) {
      Problem moved = p;
      moved.bias = bias;
      return dot(solve_double(moved).at("y"), p.dy);
    });
  }

  TEST_CASE("gated_linear: backward makes y again, in place as elsewhere") {
    const Problem p = Problem({9, 8, 40}).rounded<float>();
    const Results r = Solve{}.operator()<float>(cpu_queue(), p);
    CHECK(r.at("y again") == r.at("y"));
    CHECK(r.at("y in place") == r.at("y"));
    CHECK(r.at("dab in place") == r.at("dab"));
  }

  TEST_CASE("gated_linear: float agrees with double") {
    for (const GatedLinearShape& shape : kGatedLinearCases) {
      const Problem p = Problem(shape).rounded<float>();
      INFO("[", shape.rows, ", ", shape.in, "] to ", shape.hidden);
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve_double(p),
                   kGatedLinearTolerance.f32);
    }
  }

  TEST_CASE("gated_linear: shapes outside the contract are refused") {
    CHECK_THROWS_AS(solve_double(Problem({1, 12, 8})), Error);
    CHECK_THROWS_AS(solve_double(Problem({1, 8, 12})), Error);
    CHECK_THROWS_AS(check_shape(GatedLinearShape{0, 8, 8}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("gated_linear: CUDA agrees with the CPU") {
    for (const GatedLinearShape& shape : kGatedLinearCases) {
      INFO("[", shape.rows, ", ", shape.in, "] to ", shape.hidden);
      check_cuda(Problem(shape), kGatedLinearTolerance, Solve{});
    }
  }

  TEST_CASE("gated_linear: in half precision, up to 128 inputs, a and b stay in registers") {
    CHECK(!gated_linear_keeps_ab<f16>(cuda_queue(), kGatedLinearPaper));
    CHECK(!gated_linear_keeps_ab<bf16>(cuda_queue(), {1, 8, 8}));
    CHECK(gated_linear_keeps_ab<f16>(cuda_queue(), {64, 136, 128}));
    CHECK(gated_linear_keeps_ab<float>(cuda_queue(), kGatedLinearPaper));
  }
}
#endif

}  // namespace fm::test
