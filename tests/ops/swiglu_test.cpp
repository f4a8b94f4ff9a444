#include "kernels/swiglu/swiglu_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  SwigluShape shape;
  Values ab, dy;

  explicit Problem(const SwigluShape& s)
      : shape(s), ab(normals(s.rows * 2 * s.hidden, 1, 2)), dy(normals(s.rows * s.hidden, 2)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.ab = round_to<T>(ab);
    p.dy = round_to<T>(dy);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const std::int64_t count = p.shape.rows * p.shape.hidden;
    Array<T, Q> ab(queue, p.ab), dy(queue, p.dy), y(queue, count), dab(queue, 2 * count);
    Array<T, Q> y_again(queue, count);
    swiglu_forward(queue, SwigluForward<T>{p.shape, ab, y});
    swiglu_backward(queue, SwigluBackward<T>{p.shape, ab, dy, dab, y_again});
    swiglu_backward(queue, SwigluBackward<T>{p.shape, ab, dy, ab, dy});
    return {{"y", y.values()},
            {"dab", dab.values()},
            {"y again", y_again.values()},
            {"dab in place", ab.values()},
            {"y in place", dy.values()}};
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("swiglu: gradient against central differences") {
    Problem p({7, 48});
    const Solve solve;
    const Results r = solve.operator()<double>(cpu_queue(), p);
    check_gradient("ab", p.ab, r.at("dab"), [&](const Values& ab) {
      Problem moved = p;
      moved.ab = ab;
      return dot(solve.operator()<double>(cpu_queue(), moved).at("y"), p.dy);
    });
  }

  TEST_CASE("swiglu: backward makes y again, in place as elsewhere") {
    const Problem p = Problem({9, 24}).rounded<float>();
    const Results r = Solve{}.operator()<float>(cpu_queue(), p);
    CHECK(r.at("y again") == r.at("y"));
    CHECK(r.at("y in place") == r.at("y"));
    CHECK(r.at("dab in place") == r.at("dab"));
  }

  TEST_CASE("swiglu: float agrees with double") {
    for (const SwigluShape& shape : kSwigluCases) {
      const Problem p = Problem(shape).rounded<float>();
      const Solve solve;
      expect_close(solve.operator()<float>(cpu_queue(), p),
                   solve.operator()<double>(cpu_queue(), p), kSwigluTolerance.f32);
    }
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("swiglu: CUDA agrees with the CPU") {
    for (const SwigluShape& shape : kSwigluCases)
      check_cuda(Problem(shape), kSwigluTolerance, Solve{});
  }
}
#endif

}  // namespace fm::test
