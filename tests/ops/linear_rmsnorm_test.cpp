#include <cmath>
#include <string>

#include "kernels/base/check.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  LinearRmsNormShape shape;
  Values x, w, raw, dy, dx, weight;  // raw: backward's; dx: before; weight: all segments'

  explicit Problem(const LinearRmsNormShape& s)
      : shape(s),
        x(normals(inputs(), 1)),
        w(normals(matrix(), 2, 1 / std::sqrt(s.in))),
        raw(normals(outputs(), 3, 2)),
        dy(normals(outputs(), 4)),
        dx(normals(inputs(), 5)),
        weight(normals(weights(), 6, 0.5, 1)) {}

  std::int64_t inputs() const { return shape.rows * shape.groups * shape.in; }
  std::int64_t outputs() const { return shape.rows * shape.groups * shape.out(); }
  std::int64_t weights() const { return std::int64_t{shape.groups} * shape.out(); }
  std::int64_t matrix() const { return weights() * shape.in; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values Problem::*values :
         {&Problem::x, &Problem::w, &Problem::raw, &Problem::dy, &Problem::dx})
      p.*values = round_to<T>(p.*values);
    p.weight = round_to<acc_t<T>>(weight);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const LinearRmsNormShape& s = p.shape;
    using Acc = acc_t<T>;
    Array<T, Q> x(queue, p.x), w(queue, p.w), raw(queue, p.outputs()), y(queue, p.outputs());
    Array<T, Q> given(queue, p.raw), dy(queue, p.dy), draw(queue, p.outputs());
    Array<T, Q> dx(queue, p.inputs()), dx_added(queue, p.dx);
    Array<Acc, Q> weight(queue, p.weight), dweight(queue, p.weights());
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(linear_rmsnorm_backward_workspace<T>(s)));
    LinearRmsNormForward<T> forward{s, x, w, {}, raw, y};
    LinearRmsNormBackward<T> backward{s, given, w, {}, dy, draw, dx, false, {}, workspace};
    std::int64_t first = 0;
    for (int i = 0; i < s.segments; ++i) {
      forward.weight[i] = backward.weight[i] = weight + first;
      backward.dweight[i] = dweight + first;
      first += std::int64_t{s.groups} * s.segment_width[i];
    }
    linear_rmsnorm_forward(queue, forward);
    linear_rmsnorm_backward(queue, backward);
    Results r = {{"raw", raw.values()},
                 {"y", y.values()},
                 {"draw", draw.values()},
                 {"dx", dx.values()},
                 {"dweight", dweight.values()}};
    Array<T, Q> y_alone(queue, p.outputs()), scratch(queue, p.outputs());
    forward.y = y_alone;
    forward.raw = scratch;
    forward.keep_raw = false;
    linear_rmsnorm_forward(queue, forward);
    backward.draw = dy;
    backward.dx = dx_added;
    backward.accumulate = true;
    linear_rmsnorm_backward(queue, backward);
    r["y, raw not kept"] = y_alone.values();
    r["draw written over dy"] = dy.values();
    r["dx added to"] = dx_added.values();
    return r;
  }
};

Results solve(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

// The gradients of dot(y, dy) at x, by way of the raw that forward made.
Results layer(const Problem& p) {
  Problem q = p;
  q.raw = solve(p).at("raw");
  return solve(q);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("linear_rmsnorm: the layer is the product, then the norm of its segments") {
    const Problem p({5, 2, 6, 2, {3, 4}, 1e-2});
    const Results r = solve(p);
    for (int row = 0; row < 5; ++row)
      for (int group = 0; group < 2; ++group) {
        double raw[7], squares[2] = {};
        for (int j = 0; j < 7; ++j) {
          raw[j] = 0;
          for (int c = 0; c < 6; ++c)
            raw[j] += p.x[(row * 2 + group) * 6 + c] * p.w[(group * 7 + j) * 6 + c];
          squares[j >= 3] += raw[j] * raw[j] / (j < 3 ? 3 : 4);
        }
        for (int j = 0; j < 7; ++j) {
          const double weight = j < 3 ? p.weight[group * 3 + j] : p.weight[6 + group * 4 + j - 3];
          const std::size_t at = (row * 2 + group) * 7 + j;
          CHECK(r.at("raw")[at] == doctest::Approx(raw[j]).epsilon(1e-12));
          CHECK(
              r.at("y")[at] ==
              doctest::Approx(raw[j] / std::sqrt(squares[j >= 3] + 1e-2) * weight).epsilon(1e-12));
        }
      }
  }

  TEST_CASE("linear_rmsnorm: gradients against central differences") {
    for (const LinearRmsNormShape& shape : {LinearRmsNormShape{5, 2, 6, 3, {3, 5, 5}, 1e-5},
                                            LinearRmsNormShape{3, 1, 4, 1, {1}, 4}}) {
      const Problem p(shape);
      const Results r = layer(p);
      const auto check = [&](const char* name, Values Problem::*input, const char* gradient) {
        check_gradient(name, p.*input, r.at(gradient), [&](const Values& values) {
          Problem moved = p;
          moved.*input = values;
          return dot(solve(moved).at("y"), p.dy);
        });
      };
      check("x", &Problem::x, "dx");
      check("weight", &Problem::weight, "dweight");
      CHECK(r.at("draw") == r.at("draw written over dy"));
      Values sum = r.at("dx");
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += p.dx[i];
      expect_close({{"dx", r.at("dx added to")}}, {{"dx", sum}}, 1e-12);
    }
  }

  TEST_CASE("linear_rmsnorm: float agrees with double") {
    for (const LinearRmsNormShape& shape : kLinearRmsNormCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve(p),
                   kLinearRmsNormTolerance.f32);
    }
  }

  TEST_CASE("linear_rmsnorm: the bits do not depend on the number of threads") {
    const Problem p({301, 2, 13, 3, {3, 5, 5}, 1e-5});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("linear_rmsnorm: shapes outside the contract are refused") {
    linear_rmsnorm_check({1, 1, 1, 1, {1}, 1e-5});
    CHECK_THROWS_AS(linear_rmsnorm_check({0, 1, 1, 1, {1}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 0, 1, 1, {1}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 1, 0, 1, {1}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 1, 1, 0, {}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 1, 1, 4, {1, 1, 1}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 1, 1, 2, {1, 0}, 1e-5}), Error);
    CHECK_THROWS_AS(linear_rmsnorm_check({1, 1, 1, 1, {1}, 0}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("linear_rmsnorm: CUDA agrees with the CPU") {
    CudaQueue filled = cuda_queue();
    filled.limits.multiprocessors = 1;  // enough rows for the fused kernels, many a warp
    for (const LinearRmsNormShape& shape : kLinearRmsNormCases) {
      INFO(shape.rows, " rows, ", shape.groups, " x ", shape.in, " to ", shape.out());
      check_cuda(Problem(shape), kLinearRmsNormTolerance, Solve{});
      check_cuda(Problem(shape), kLinearRmsNormTolerance, Solve{}, filled);
    }
  }

  TEST_CASE("linear_rmsnorm: CUDA, little shared memory: fewer warps a block, or the parts") {
    CudaQueue queue = cuda_queue();
    queue.limits.multiprocessors = 4;
    const Problem p = Problem({1009, 2, 256, 3, {8, 64, 64}, 1e-5}).rounded<f16>();
    for (const std::size_t kilobytes : {160, 48}) {
      queue.limits.shared_bytes_per_block = kilobytes * 1024;
      expect_close(Solve{}.operator()<f16>(queue, p), solve(p), kLinearRmsNormTolerance.f16);
    }
  }

  TEST_CASE("linear_rmsnorm: a row of zeros gives zeros and finite gradients on CUDA") {
    CudaQueue filled = cuda_queue();
    filled.limits.multiprocessors = 1;
    Problem p({600, 2, 64, 3, {8, 64, 64}, 1e-5});
    std::fill(p.x.begin() + 2 * 64, p.x.begin() + 4 * 64, 0.0);
    std::fill(p.raw.begin() + 2 * 136, p.raw.begin() + 4 * 136, 0.0);
    check_cuda(p, kLinearRmsNormTolerance, Solve{}, filled);
  }
}
#endif

}  // namespace fm::test
