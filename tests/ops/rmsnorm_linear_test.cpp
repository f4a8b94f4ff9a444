#include <cmath>

#include "kernels/base/check.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// Every kernel by itself, each on inputs of its own.
struct Problem {
  RmsNormLinearShape shape;
  Values x, y, dy, g, v, w, weight, dv, r, s;

  explicit Problem(const RmsNormLinearShape& size)
      : shape(size),
        x(normals(size.rows * size.in, 1, 2)),
        y(normals(size.rows * size.out, 2)),
        dy(normals(size.rows * size.out, 3)),
        g(normals(size.rows * size.out, 4)),
        v(normals(weights(), 10, 1 / std::sqrt(size.in))),
        w(normals(weights(), 5)),
        weight(normals(size.in, 6, 0.5, 1)),
        dv(normals(weights(), 7)),
        r(normals(size.rows, 8, 0.1, 1)),
        s(normals(size.rows, 9)) {}

  std::int64_t weights() const { return static_cast<std::int64_t>(shape.out) * shape.in; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values Problem::*values :
         {&Problem::x, &Problem::y, &Problem::dy, &Problem::g, &Problem::v})
      p.*values = round_to<T>(p.*values);
    for (Values Problem::*values :
         {&Problem::w, &Problem::weight, &Problem::dv, &Problem::r, &Problem::s})
      p.*values = round_to<acc_t<T>>(p.*values);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    using Acc = acc_t<T>;
    const RmsNormLinearShape& shape = p.shape;
    Array<Acc, Q> w(queue, p.w), weight(queue, p.weight), dw(queue, p.dv), dweight(queue, shape.in);
    Array<T, Q> folded(queue, p.weights()), v(queue, p.v);
    rmsnorm_fold(queue, RmsNormFold<T>{shape, w, weight, folded});
    rmsnorm_fold_backward(queue, RmsNormFoldBackward<T>{shape, w, weight, dw, dweight});
    Array<T, Q> x(queue, p.x), y(queue, p.y), y_out(queue, shape.rows * shape.out);
    Array<Acc, Q> r_out(queue, shape.rows), r(queue, p.r), s(queue, p.s), s_out(queue, shape.rows);
    rmsnorm_linear_forward(queue, RmsNormLinearForward<T>{shape, x, v, y_out, r_out});
    Array<T, Q> dy(queue, p.dy), g_out(queue, shape.rows * shape.out);
    rmsnorm_scale_backward(queue, RmsNormScaleBackward<T>{shape, dy, y, r, g_out, s_out});
    Array<T, Q> g(queue, p.g), dx(queue, shape.rows * shape.in);
    rmsnorm_linear_backward_input(queue, RmsNormLinearBackwardInput<T>{shape, g, v, x, s, dx});
    Results results = {{"v", folded.values()}, {"dw", dw.values()},   {"dweight", dweight.values()},
                       {"y", y_out.values()},  {"r", r_out.values()}, {"g", g_out.values()},
                       {"s", s_out.values()},  {"dx", dx.values()}};
    rmsnorm_scale_backward(queue, RmsNormScaleBackward<T>{shape, dy, y, r, dy, s_out});
    results["g written over dy"] = dy.values();
    results["s, g written over dy"] = s_out.values();
    return results;
  }
};

// The whole layer, composed as the header says: y, and the gradients of dot(y, dy).
Results layer(const Problem& p) {
  const RmsNormLinearShape& shape = p.shape;
  CpuQueue& queue = cpu_queue();
  using A = Array<double, CpuQueue>;
  A w(queue, p.w), weight(queue, p.weight), v(queue, p.weights()), x(queue, p.x);
  rmsnorm_fold(queue, RmsNormFold<double>{shape, w, weight, v});
  A y(queue, shape.rows * shape.out), r(queue, shape.rows);
  rmsnorm_linear_forward(queue, RmsNormLinearForward<double>{shape, x, v, y, r});
  A dy(queue, p.dy), g(queue, shape.rows * shape.out), s(queue, shape.rows);
  rmsnorm_scale_backward(queue, RmsNormScaleBackward<double>{shape, dy, y, r, g, s});
  A dx(queue, shape.rows * shape.in);
  rmsnorm_linear_backward_input(queue, RmsNormLinearBackwardInput<double>{shape, g, v, x, s, dx});
  Values dv(static_cast<std::size_t>(p.weights()));  // g^T x
  const Values rows = g.values();
  for (std::int64_t row = 0; row < shape.rows; ++row)
    for (int j = 0; j < shape.out; ++j)
      for (int c = 0; c < shape.in; ++c)
        dv[j * shape.in + c] += rows[row * shape.out + j] * p.x[row * shape.in + c];
  A dw(queue, dv), dweight(queue, shape.in);
  rmsnorm_fold_backward(queue, RmsNormFoldBackward<double>{shape, w, weight, dw, dweight});
  return {
      {"y", y.values()}, {"dx", dx.values()}, {"dw", dw.values()}, {"dweight", dweight.values()}};
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("rmsnorm_linear: the layer is the norm, then the product") {
    const Problem p({5, 20, 7, 1e-2});
    const Values y = layer(p).at("y");
    for (int row = 0; row < 5; ++row) {
      double squares = 0;
      for (int c = 0; c < 20; ++c) squares += p.x[row * 20 + c] * p.x[row * 20 + c];
      for (int j = 0; j < 7; ++j) {
        double want = 0;
        for (int c = 0; c < 20; ++c)
          want +=
              p.x[row * 20 + c] / std::sqrt(squares / 20 + 1e-2) * p.weight[c] * p.w[j * 20 + c];
        CHECK(y[row * 7 + j] == doctest::Approx(want).epsilon(1e-12));
      }
    }
  }

  TEST_CASE("rmsnorm_linear: gradients against central differences") {
    for (const RmsNormLinearShape& shape :
         {RmsNormLinearShape{5, 12, 7, 1e-5}, RmsNormLinearShape{3, 1, 2, 4}}) {
      const Problem p(shape);
      const Results r = layer(p);
      const auto check = [&](const char* name, Values Problem::*input, const char* gradient) {
        check_gradient(name, p.*input, r.at(gradient), [&](const Values& values) {
          Problem moved = p;
          moved.*input = values;
          return dot(layer(moved).at("y"), p.dy);
        });
      };
      check("x", &Problem::x, "dx");
      check("w", &Problem::w, "dw");
      check("weight", &Problem::weight, "dweight");
    }
  }

  TEST_CASE("rmsnorm_linear: float agrees with double") {
    for (const RmsNormLinearShape& shape : kRmsNormLinearCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p),
                   Solve{}.operator()<double>(cpu_queue(), p), kRmsNormLinearTolerance.f32);
    }
  }

  TEST_CASE("rmsnorm_linear: the bits do not depend on the number of threads") {
    const Problem p({301, 70, 33, 1e-5});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("rmsnorm_linear: shapes outside the contract are refused") {
    rmsnorm_linear_check({1, 1, 1, 1e-5});
    CHECK_THROWS_AS(rmsnorm_linear_check({0, 1, 1, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 0, 1, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 1, 0, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 1, 1, 0}), Error);
  }
}

#if FM_CUDA
namespace {

// Whether there is such a kernel for this shape; if so, its y is that of the fold and the product.
template <class T>
bool inference_agrees(const Problem& p) {
  CudaQueue& queue = cuda_queue();
  const RmsNormLinearShape& shape = p.shape;
  using Acc = acc_t<T>;
  Array<Acc, CudaQueue> w(queue, p.w), weight(queue, p.weight), r(queue, shape.rows);
  Array<T, CudaQueue> x(queue, p.x), v(queue, p.weights());
  Array<T, CudaQueue> y(queue, shape.rows * shape.out), y_both(queue, shape.rows * shape.out);
  if (!rmsnorm_linear_inference(queue, RmsNormLinearInference<T>{shape, x, w, weight, y}))
    return false;
  rmsnorm_fold(queue, RmsNormFold<T>{shape, w, weight, v});
  rmsnorm_linear_forward(queue, RmsNormLinearForward<T>{shape, x, v, y_both, r});
  expect_same_bits({{"y", y.values()}}, {{"y", y_both.values()}});
  return true;
}

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("rmsnorm_linear: CUDA agrees with the CPU") {
    for (const RmsNormLinearShape& shape : kRmsNormLinearCases) {
      INFO(shape.rows, " rows, ", shape.in, " to ", shape.out);
      check_cuda(Problem(shape), kRmsNormLinearTolerance, Solve{});
    }
  }

  TEST_CASE("rmsnorm_linear: CUDA, the product from W itself has the bits of the two kernels") {
    int few = 0;
    for (const RmsNormLinearShape& shape : kRmsNormLinearCases) {
      INFO(shape.rows, " rows, ", shape.in, " to ", shape.out);
      few += inference_agrees<f16>(Problem(shape).rounded<f16>());
      inference_agrees<bf16>(Problem(shape).rounded<bf16>());
    }
    CHECK(few == 3);
  }
}
#endif

}  // namespace fm::test
