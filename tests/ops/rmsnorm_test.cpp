#include <string>

#include "kernels/base/check.h"
#include "kernels/rmsnorm/rmsnorm_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  RmsNormShape shape;
  Values x, dy, weight;  // weight: all segments', one after another

  explicit Problem(const RmsNormShape& s)
      : shape(s),
        x(normals(elements(), 1, 2)),
        dy(normals(elements(), 2)),
        weight(normals(s.weights(), 3, 0.5, 1)) {}

  std::int64_t elements() const { return shape.rows * shape.groups * shape.width; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<T>(x);
    p.dy = round_to<T>(dy);
    p.weight = round_to<acc_t<T>>(weight);
    return p;
  }

  bool in_segment(std::size_t index) const {
    const int column = static_cast<int>(index % shape.width);
    for (int s = 0; s < shape.segments; ++s)
      if (column >= shape.begin[s] && column < shape.begin[s] + shape.segment_width[s]) return true;
    return false;
  }
  // The elements of an output that lie in a segment; checks that the others are still `outside`
  // (NaN: still poisoned).
  Values gather(const Values& rows, const Values* outside = nullptr) const {
    Values inside;
    bool untouched = true;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (in_segment(i)) inside.push_back(rows[i]);
      else untouched = untouched && (outside ? rows[i] == (*outside)[i] : std::isnan(rows[i]));
    CHECK(untouched);
    return inside;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const RmsNormShape& s = p.shape;
    using Acc = acc_t<T>;
    Array<T, Q> x(queue, p.x), dy(queue, p.dy), dx_in_dy(queue, p.dy);
    Array<T, Q> y(queue, p.elements()), dx(queue, p.elements());
    Array<Acc, Q> weight(queue, p.weight), dweight(queue, s.weights());
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(rmsnorm_backward_workspace<T>(s)));
    RmsNormForward<T> forward{s, x, {}, y};
    RmsNormBackward<T> backward{s, x, {}, dy, dx, {}, workspace};
    std::int64_t first = 0;
    for (int i = 0; i < s.segments; ++i) {
      forward.weight[i] = backward.weight[i] = weight + first;
      backward.dweight[i] = dweight + first;
      first += s.weights(i);
    }
    rmsnorm_forward(queue, forward);
    rmsnorm_backward(queue, backward);
    Results r = {
        {"y", p.gather(y.values())}, {"dx", p.gather(dx.values())}, {"dweight", dweight.values()}};
    backward.dy = backward.dx = dx_in_dy;
    rmsnorm_backward(queue, backward);
    r["dx written over dy"] = p.gather(dx_in_dy.values(), &p.dy);
    r["dweight, dx written over dy"] = dweight.values();
    return r;
  }
};

Results solve(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("rmsnorm: gradients against central differences") {
    for (const RmsNormShape& shape : {RmsNormShape{5, 2, 13, 3, {0, 3, 8}, {3, 5, 5}, 1e-5},
                                      RmsNormShape{3, 1, 40, 1, {0}, {40}, 1e-5}}) {
      const Problem p(shape);
      const Results r = solve(p);
      const Values dy = p.gather(p.dy, &p.dy);
      const auto check = [&](const char* name, Values Problem::*input, const char* gradient) {
        check_gradient(name, p.*input, r.at(gradient), [&](const Values& values) {
          Problem moved = p;
          moved.*input = values;
          return dot(solve(moved).at("y"), dy);
        });
      };
      check("x", &Problem::x, "dx");
      check("weight", &Problem::weight, "dweight");
      CHECK(r.at("dx") == r.at("dx written over dy"));
      CHECK(r.at("dweight") == r.at("dweight, dx written over dy"));
    }
  }

  TEST_CASE("rmsnorm: float agrees with double") {
    for (const RmsNormShape& shape : kRmsNormCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve(p), kRmsNormTolerance.f32);
    }
  }

  TEST_CASE("rmsnorm: the RMS of a normalised segment is 1, whatever the scale") {
    Problem p({2, 1, 64, 1, {0}, {64}, 1e-12});
    p.weight.assign(64, 1);
    for (int i = 0; i < 64; ++i) p.x[i] *= 1e4;
    const Values y = solve(p).at("y");
    for (int row = 0; row < 2; ++row) {
      double squares = 0;
      for (int i = 0; i < 64; ++i) squares += y[row * 64 + i] * y[row * 64 + i];
      CHECK(squares / 64 == doctest::Approx(1));
    }
  }

  TEST_CASE("rmsnorm: a row of zeros gives zeros and finite gradients") {
    Problem p({3, 1, 20, 2, {0, 12}, {12, 8}, 1e-5});
    std::fill(p.x.begin() + 20, p.x.begin() + 40, 0.0);
    for (const Results& r : {solve(p), Solve{}.operator()<float>(cpu_queue(), p)}) {
      for (int i = 20; i < 40; ++i) {
        CHECK(r.at("y")[i] == 0);
        // x = 0: dx = w dy / sqrt(eps)
        CHECK(r.at("dx")[i] ==
              doctest::Approx(p.weight[i - 20] * p.dy[i] / std::sqrt(1e-5)).epsilon(1e-6));
      }
      for (double g : r.at("dweight")) CHECK(std::isfinite(g));
    }
  }

  TEST_CASE("rmsnorm: the bits do not depend on the number of threads") {
    const Problem p({301, 2, 13, 3, {0, 3, 8}, {3, 5, 5}, 1e-5});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("rmsnorm: shapes outside the contract are refused") {
    rmsnorm_check({2, 1, 10, 2, {5, 0}, {5, 5}, 1e-5});
    CHECK_THROWS_AS(rmsnorm_check({2, 1, 10, 2, {4, 0}, {5, 5}, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_check({2, 1, 10, 1, {5}, {6}, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_check({2, 1, 10, 1, {5}, {0}, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_check({2, 1, 10, 4, {0}, {5}, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_check({2, 1, 10, 1, {0}, {5}, 0}), Error);
    CHECK_THROWS_AS(rmsnorm_check({0, 1, 10, 1, {0}, {5}, 1e-5}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("rmsnorm: CUDA agrees with the CPU") {
    for (const RmsNormShape& shape : kRmsNormCases) {
      INFO(shape.rows, " rows of ", shape.groups, " x ", shape.width);
      check_cuda(Problem(shape), kRmsNormTolerance, Solve{});
    }
  }

  TEST_CASE("rmsnorm: a row of zeros gives zeros and finite gradients on CUDA") {
    Problem p({3, 2, 136, 3, {0, 8, 72}, {8, 64, 64}, 1e-5});
    std::fill(p.x.begin() + 2 * 136, p.x.begin() + 4 * 136, 0.0);
    check_cuda(p, kRmsNormTolerance, Solve{});
  }
}
#endif

}  // namespace fm::test
