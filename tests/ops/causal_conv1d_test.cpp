#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/causal_conv1d/causal_conv1d_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  ConvShape shape;
  std::int64_t x_stride;
  Values x, weight, bias, du;  // x: only its tokens' channels, dense

  explicit Problem(const ConvCase& c)
      : shape(c.shape),
        x_stride(c.x_stride),
        x(normals(elements(), 1)),
        weight(normals(shape.channels * shape.width, 2, 0.5)),
        bias(normals(shape.channels, 3, 0.5)),
        du(normals(elements(), 4)) {}

  std::int64_t tokens() const { return static_cast<std::int64_t>(shape.batch) * shape.length; }
  std::int64_t elements() const { return tokens() * shape.channels; }

  // Where token `t` of the order of channel c's direction lies in a dense array.
  std::size_t at(int image, int t, int c) const {
    const bool mirrored = c >= shape.channels / shape.directions;
    const std::int64_t row =
        static_cast<std::int64_t>(image) * shape.length + (mirrored ? shape.length - 1 - t : t);
    return static_cast<std::size_t>(row * shape.channels + c);
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<T>(x);
    p.du = round_to<T>(du);
    p.weight = round_to<acc_t<T>>(weight);
    p.bias = round_to<acc_t<T>>(bias);
    return p;
  }
};

// Spreads dense rows to rows `stride` apart, with NaN between; and back, which also checks that
// nothing between the rows was written.
Values spread(const Values& dense, std::int64_t channels, std::int64_t stride) {
  Values wide(dense.size() / channels * stride, std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < dense.size(); ++i)
    wide[i / channels * stride + i % channels] = dense[i];
  return wide;
}
Values gather(const Values& wide, std::int64_t channels, std::int64_t stride) {
  Values dense;
  bool untouched = true;
  for (std::size_t i = 0; i < wide.size(); ++i)
    if (i % stride < static_cast<std::size_t>(channels)) dense.push_back(wide[i]);
    else untouched = untouched && std::isnan(wide[i]);
  CHECK(untouched);
  return dense;
}

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const ConvShape& s = p.shape;
    Array<T, Q> x(queue, spread(p.x, s.channels, p.x_stride)), du(queue, p.du);
    Array<acc_t<T>, Q> weight(queue, p.weight), bias(queue, p.bias);
    Array<T, Q> u(queue, p.elements()), dx(queue, p.tokens() * p.x_stride);
    Array<acc_t<T>, Q> dweight(queue, s.channels * s.width), dbias(queue, s.channels);
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(conv_backward_workspace<T>(s)));
    conv_forward(queue, ConvForward<T>{s, x, p.x_stride, weight, bias, u});
    conv_backward(
        queue, ConvBackward<T>{s, x, p.x_stride, weight, bias, du, dx, dweight, dbias, workspace});
    return {{"u", u.values()},
            {"dx", gather(dx.values(), s.channels, p.x_stride)},
            {"dweight", dweight.values()},
            {"dbias", dbias.values()}};
  }
};

Results solve(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("causal_conv1d: gradients against central differences") {
    for (const ConvCase& c : {ConvCase{{2, 9, 6, 2, 4}, 15}, ConvCase{{1, 3, 5, 1, 8}, 5}}) {
      const Problem p(c);
      const Results r = solve(p);
      const auto check = [&](const char* name, Values Problem::*input, const char* gradient) {
        check_gradient(name, p.*input, r.at(gradient), [&](const Values& values) {
          Problem moved = p;
          moved.*input = values;
          return dot(solve(moved).at("u"), p.du);
        });
      };
      check("x", &Problem::x, "dx");
      check("weight", &Problem::weight, "dweight");
      check("bias", &Problem::bias, "dbias");
    }
  }

  TEST_CASE("causal_conv1d: float agrees with double") {
    for (const ConvCase& c : kConvCases) {
      const Problem p = Problem(c).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve(p), kConvTolerance.f32);
    }
  }

  TEST_CASE("causal_conv1d: a token reaches itself and the width-1 after it, in both directions") {
    const Problem p({{1, 12, 4, 2, 3}, 4});
    const Values before = solve(p).at("u");
    const int token = 5;
    Problem moved = p;
    for (int c = 0; c < p.shape.channels; ++c) moved.x[p.at(0, token, c)] += 1;
    const Values after = solve(moved).at("u");
    for (int t = 0; t < p.shape.length; ++t)
      for (int c = 0; c < p.shape.channels; ++c) {
        INFO("token ", t, " of the direction's order, channel ", c);
        const bool reached = t >= token && t < token + p.shape.width;
        CHECK((before[p.at(0, t, c)] != after[p.at(0, t, c)]) == reached);
      }
  }

  TEST_CASE("causal_conv1d: direction 1 is direction 0 of the mirrored tokens") {
    Problem p({{2, 11, 10, 2, 4}, 10});
    const int half = p.shape.channels / 2;
    for (int image = 0; image < p.shape.batch; ++image)
      for (int t = 0; t < p.shape.length; ++t)
        for (int c = 0; c < half; ++c) {
          p.x[p.at(image, t, half + c)] = p.x[p.at(image, t, c)];
          p.du[p.at(image, t, half + c)] = p.du[p.at(image, t, c)];
        }
    const auto second_half_as_first = [](Values& values) {
      std::copy_n(values.begin(), values.size() / 2, values.begin() + values.size() / 2);
    };
    second_half_as_first(p.weight);
    second_half_as_first(p.bias);
    const Results r = solve(p);
    bool mirrored = true;
    for (const char* name : {"u", "dx"})
      for (int image = 0; image < p.shape.batch; ++image)
        for (int t = 0; t < p.shape.length; ++t)
          for (int c = 0; c < half; ++c)
            mirrored =
                mirrored && r.at(name)[p.at(image, t, c)] == r.at(name)[p.at(image, t, half + c)];
    CHECK(mirrored);
    for (const char* name : {"dweight", "dbias"}) {
      Values same = r.at(name);
      second_half_as_first(same);
      CHECK(same == r.at(name));
    }
  }

  TEST_CASE("causal_conv1d: the bits do not depend on the number of threads") {
    const Problem p({{5, 40, 24, 2, 4}, 24});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("causal_conv1d: shapes outside the contract are refused") {
    conv_check({1, 1, 4, 2, 8}, 4);
    CHECK_THROWS_AS(conv_check({1, 1, 4, 2, 9}, 4), Error);
    CHECK_THROWS_AS(conv_check({1, 1, 4, 2, 1}, 4), Error);
    CHECK_THROWS_AS(conv_check({1, 1, 5, 2, 4}, 5), Error);
    CHECK_THROWS_AS(conv_check({1, 1, 6, 3, 4}, 6), Error);
    CHECK_THROWS_AS(conv_check({1, 0, 4, 2, 4}, 4), Error);
    CHECK_THROWS_AS(conv_check({1, 1, 4, 2, 4}, 3), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("causal_conv1d: CUDA agrees with the CPU") {
    for (const ConvCase& c : kConvCases) {
      INFO("L ", c.shape.length, ", channels ", c.shape.channels, ", width ", c.shape.width);
      check_cuda(Problem(c), kConvTolerance, Solve{});
    }
  }
}
#endif

}  // namespace fm::test
