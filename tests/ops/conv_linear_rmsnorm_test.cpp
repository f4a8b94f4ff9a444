#include <cmath>

#include "kernels/base/check.h"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  ConvLinearRmsNormCase shape;
  Values x, taps, bias, w, weight;  // weight: all segments'

  explicit Problem(const ConvLinearRmsNormCase& c)
      : shape(c),
        x(normals(c.layer.rows * c.conv.x_stride, 1)),
        taps(normals(std::int64_t{c.conv.shape.channels} * c.conv.shape.width, 2, 0.5)),
        bias(normals(c.conv.shape.channels, 3, 0.5)),
        w(normals(weights() * c.layer.in, 4, 1 / std::sqrt(c.layer.in))),
        weight(normals(weights(), 5, 0.5, 1)) {}

  std::int64_t weights() const { return std::int64_t{shape.layer.groups} * shape.layer.out(); }
  std::int64_t outputs() const { return shape.layer.rows * weights(); }
  std::int64_t inner() const { return shape.layer.rows * shape.conv.shape.channels; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<T>(x);
    p.w = round_to<T>(w);
    for (Values Problem::*values : {&Problem::taps, &Problem::bias, &Problem::weight})
      p.*values = round_to<acc_t<T>>(p.*values);
    return p;
  }
};

// `apart`: by the two operations.
template <bool kApart>
struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const LinearRmsNormShape& s = p.shape.layer;
    using Acc = acc_t<T>;
    Array<T, Q> x(queue, p.x), w(queue, p.w), u(queue, p.inner());
    Array<T, Q> raw(queue, p.outputs()), y(queue, p.outputs());
    Array<Acc, Q> taps(queue, p.taps), bias(queue, p.bias), weight(queue, p.weight);
    ConvLinearRmsNormForward<T> layer{{p.shape.conv.shape, x, p.shape.conv.x_stride, taps, bias, u},
                                      {s, u, w, {}, raw, y}};
    std::int64_t first = 0;
    for (int i = 0; i < s.segments; ++i) {
      layer.layer.weight[i] = weight + first;
      first += std::int64_t{s.groups} * s.segment_width[i];
    }
    const auto run = [&] {
      if constexpr (kApart) {
        conv_forward(queue, layer.conv);
        linear_rmsnorm_forward(queue, layer.layer);
      } else {
        conv_linear_rmsnorm_forward(queue, layer);
      }
    };
    run();
    Results r = {{"u", u.values()}, {"raw", raw.values()}, {"y", y.values()}};
    Array<T, Q> y_alone(queue, p.outputs()), scratch(queue, p.outputs());
    layer.layer.y = y_alone;
    layer.layer.raw = scratch;
    layer.layer.keep_raw = false;
    run();
    r["y, raw not kept"] = y_alone.values();
    return r;
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("conv_linear_rmsnorm: float agrees with double") {
    for (const ConvLinearRmsNormCase& shape : kConvLinearRmsNormCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve<false>{}.operator()<float>(cpu_queue(), p),
                   Solve<true>{}.operator()<double>(cpu_queue(), p),
                   kConvLinearRmsNormTolerance.f32);
    }
  }

  TEST_CASE(
      "conv_linear_rmsnorm: a layer that does not take what the convolution makes is refused") {
    const ConvLinearRmsNormCase& good = kConvLinearRmsNormPaper;
    conv_linear_rmsnorm_check(good.conv.shape, good.layer);
    LinearRmsNormShape rows = good.layer, groups = good.layer, in = good.layer;
    rows.rows -= 1;
    groups.groups = 1;
    in.in = 128;
    for (const LinearRmsNormShape& bad : {rows, groups, in})
      CHECK_THROWS_AS(conv_linear_rmsnorm_check(good.conv.shape, bad), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("conv_linear_rmsnorm: CUDA agrees with the CPU") {
    CudaQueue filled = cuda_queue();
    filled.limits.multiprocessors = 1;  // enough rows for the fused kernel, many a warp
    for (const ConvLinearRmsNormCase& shape : kConvLinearRmsNormCases) {
      INFO(shape.conv.shape.batch, " x ", shape.conv.shape.length, ", ", shape.layer.groups, " x ",
           shape.layer.in, " to ", shape.layer.out());
      check_cuda(Problem(shape), kConvLinearRmsNormTolerance, Solve<false>{});
      check_cuda(Problem(shape), kConvLinearRmsNormTolerance, Solve<false>{}, filled);
    }
  }

  // Backward makes u again by the convolution alone.
  TEST_CASE("conv_linear_rmsnorm: u has the bits that the convolution gives it") {
    CudaQueue filled = cuda_queue();
    filled.limits.multiprocessors = 1;
    for (const ConvLinearRmsNormCase& shape : kConvLinearRmsNormCases) {
      const Problem p = Problem(shape).rounded<f16>();
      CHECK(Solve<false>{}.operator()<f16>(filled, p).at("u") ==
            Solve<true>{}.operator()<f16>(filled, p).at("u"));
    }
  }
}
#endif

}  // namespace fm::test
