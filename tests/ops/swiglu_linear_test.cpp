#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu_linear/swiglu_linear_cases.h"
#include "tests/support/cuda.h"
#include "tests/support/files.h"

#if FM_CUDA
namespace fm::test {
namespace {

struct Problem {
  SwigluLinearShape shape;
  Values x, w12, bias, w3, dy;

  explicit Problem(const SwigluLinearShape& s)
      : shape(s),
        x(normals(s.rows * s.width, 1)),
        w12(normals(std::int64_t{2} * s.hidden * s.width, 2, 1 / std::sqrt(s.width))),
        bias(normals(2 * s.hidden, 3)),
        w3(normals(std::int64_t{1} * s.width * s.hidden, 4, 1 / std::sqrt(s.width))),
        dy(normals(s.rows * s.width, 5)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.x, &p.w12, &p.bias, &p.w3, &p.dy}) *values = round_to<T>(*values);
    return p;
  }
};

// The fused kernels on CUDA; on the CPU what they fuse.
struct Solve {
  template <class T>
  Results operator()(CudaQueue& queue, const Problem& p) const {
    const std::int64_t count = p.shape.rows * p.shape.hidden;
    Array<T, CudaQueue> x(queue, p.x), w12(queue, p.w12), bias(queue, p.bias), w3(queue, p.w3),
        dy(queue, p.dy), h(queue, count), h_again(queue, count), dab(queue, 2 * count);
    swiglu_linear_forward(queue, SwigluLinearForward<T>{p.shape, x, w12, bias, h});
    swiglu_linear_backward(queue,
                           SwigluLinearBackward<T>{p.shape, x, w12, bias, w3, dy, dab, h_again});
    return {{"h", h.values()}, {"h again", h_again.values()}, {"dab", dab.values()}};
  }

  template <class T>
  Results operator()(CpuQueue& queue, const Problem& p) const {
    const SwigluLinearShape& s = p.shape;
    const std::int64_t count = s.rows * s.hidden;
    Array<T, CpuQueue> x(queue, p.x), w12(queue, p.w12), bias(queue, p.bias), w3(queue, p.w3),
        dy(queue, p.dy), ab(queue, 2 * count), h(queue, count), dh(queue, count),
        dab(queue, 2 * count), h_again(queue, count);
    const LinearShape wide{.rows = s.rows, .in = s.width, .out = 2 * s.hidden};
    const LinearShape narrow{.rows = s.rows, .in = s.hidden, .out = s.width};
    linear_forward(queue, LinearForward<T, T>{wide, x, w12, bias, ab});
    swiglu_forward(queue, SwigluForward<T>{{s.rows, s.hidden}, ab, h});
    linear_backward_input(queue, LinearBackwardInput<T>{narrow, dy, w3, dh});
    swiglu_backward(queue, SwigluBackward<T>{{s.rows, s.hidden}, ab, dh, dab, h_again});
    return {{"h", h.values()}, {"h again", h_again.values()}, {"dab", dab.values()}};
  }
};

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("swiglu_linear: CUDA agrees with products and gates apart") {
    for (const SwigluLinearShape& shape : kSwigluLinearCases) {
      INFO(shape.rows, " rows, width ", shape.width, ", hidden ", shape.hidden);
      const Problem problem(shape);
      Solve solve;
      check_cuda_type<f16>(problem, kSwigluLinearTolerance, solve, cuda_queue());
      check_cuda_type<bf16>(problem, kSwigluLinearTolerance, solve, cuda_queue());
    }
  }

  TEST_CASE("swiglu_linear: large values saturate, infinities and NaN come through") {
    Problem p = Problem({3, 64, 32}).rounded<f16>();
    for (std::size_t i = 0; i < 64; ++i) p.x[i] = p.w12[i] = 16;  // a = 16384
    for (std::size_t i = 64; i < 128; ++i) p.x[i] = -16;          // a = -16384: h = 0
    p.x[2 * 64] = std::numeric_limits<double>::infinity();
    const Results r = Solve{}.operator()<f16>(cuda_queue(), p);
    CHECK(std::isfinite(r.at("h")[32]));
    CHECK(r.at("h")[32] == 0);
    CHECK(!std::isfinite(r.at("h")[64]));
    CHECK(!std::isfinite(r.at("dab")[2 * 64]));
  }

  TEST_CASE("swiglu_linear: it says which shapes it takes") {
    CHECK(swiglu_linear_fits({7, 128, 512}, DType::f16));
    CHECK(swiglu_linear_fits({7, 64, 32}, DType::bf16));
    CHECK(!swiglu_linear_fits({7, 128, 512}, DType::f32));
    CHECK(!swiglu_linear_fits({7, 96, 512}, DType::f16));
    CHECK(!swiglu_linear_fits({7, 128, 48}, DType::f16));
    expect_fault(Fault::usage, "[swiglu_linear] width must be 64 or 128", [] {
      swiglu_linear_forward(
          cuda_queue(), SwigluLinearForward<f16>{{7, 96, 512}, nullptr, nullptr, nullptr, nullptr});
    });
  }
}

}  // namespace fm::test
#endif
