#include <cmath>

#include "kernels/base/check.h"
#include "kernels/rmsnorm_linear/rmsnorm_linear_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// Every kernel by itself, each on inputs of its own. z is the last columns of its rows.
struct Problem {
  RmsNormLinearShape shape;
  Values x, y, dy, v, w, weight, dv, r, z;

  explicit Problem(const RmsNormLinearShape& size)
      : shape(size),
        x(normals(size.rows * size.in, 1, 2)),
        y(normals(size.rows * size.out, 2, size.in / (5 * std::sqrt(size.out)))),  // s near 0.2
        dy(normals(size.rows * size.out, 3)),
        v(normals(weights(), 10, 1 / std::sqrt(size.in))),
        w(normals(weights(), 5)),
        weight(normals(size.in, 6, 0.5, 1)),
        dv(normals(weights(), 7)),
        r(normals(size.rows, 8, 0.1, 1)),
        z(normals(size.rows * size.z_stride, 11, 2)) {}

  std::int64_t weights() const { return static_cast<std::int64_t>(shape.out) * shape.in; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values Problem::*values :
         {&Problem::x, &Problem::y, &Problem::dy, &Problem::v, &Problem::z})
      p.*values = round_to<T>(p.*values);
    for (Values Problem::*values : {&Problem::w, &Problem::weight, &Problem::dv, &Problem::r})
      p.*values = round_to<acc_t<T>>(p.*values);
    return p;
  }
};

// Columns of the gate's rows that are the gate; the others must still be poison.
Values gate_of(const RmsNormLinearShape& s, const Values& rows) {
  Values gate;
  bool others_untouched = true;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (static_cast<std::int64_t>(i) % s.z_stride >= s.z_stride - s.in) gate.push_back(rows[i]);
    else others_untouched &= std::isnan(rows[i]);
  CHECK(others_untouched);
  return gate;
}

// The two calls that know of a gate, on its columns of their rows.
template <class T, class Q>
void forward(Q& queue, const Problem& p, const T* x, const T* v, T* y, acc_t<T>* r) {
  const Array<T, Q> z(queue, p.z);
  const Bytes<Q> workspace(
      queue, static_cast<std::int64_t>(rmsnorm_linear_forward_workspace<T>(queue, p.shape)));
  const T* const gate = p.shape.gated() ? z + (p.shape.z_stride - p.shape.in) : nullptr;
  rmsnorm_linear_forward(queue, RmsNormLinearForward<T>{.shape = p.shape,
                                                        .x = x,
                                                        .v = v,
                                                        .y = y,
                                                        .r = r,
                                                        .z = gate,
                                                        .workspace = workspace.data()});
}
template <class T, class Q>
Results backward(Q& queue, const Problem& p, const T* y, const acc_t<T>* r, const T* v) {
  const RmsNormLinearShape& shape = p.shape;
  const Array<T, Q> x(queue, p.x), z(queue, p.z), dx(queue, shape.rows * shape.in);
  const Array<T, Q> dy(queue, p.dy), dz(queue, shape.rows * shape.z_stride);
  const Array<acc_t<T>, Q> dv(queue, p.weights());
  const Bytes<Q> workspace(
      queue, static_cast<std::int64_t>(rmsnorm_linear_backward_workspace<T>(queue, shape)));
  const std::int64_t begin = shape.z_stride - shape.in;
  const RmsNormLinearBackward<T> arguments{.shape = shape,
                                           .dy = dy,
                                           .y = y,
                                           .r = r,
                                           .v = v,
                                           .x = x,
                                           .dx = dx,
                                           .dv = dv,
                                           .z = shape.gated() ? z + begin : nullptr,
                                           .dz = shape.gated() ? dz + begin : nullptr,
                                           .workspace = workspace.data()};
  rmsnorm_linear_backward(queue, arguments);
  rmsnorm_linear_backward_weight(queue, arguments);
  Results results = {{"dx", dx.values()}, {"dv", dv.values()}};
  if (shape.gated()) results["dz"] = gate_of(shape, dz.values());
  return results;
}

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
    Array<Acc, Q> r_out(queue, shape.rows), r(queue, p.r);
    forward<T>(queue, p, x, v, y_out, r_out);
    Results results = backward<T>(queue, p, y, r, v);
    results.merge(Results{{"v", folded.values()},
                          {"dw", dw.values()},
                          {"dweight", dweight.values()},
                          {"y", y_out.values()},
                          {"r", r_out.values()}});
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
  forward<double>(queue, p, x, v, y, r);
  Results results = backward<double>(queue, p, y, r, v);
  A dw(queue, results.at("dv")), dweight(queue, shape.in);
  rmsnorm_fold_backward(queue, RmsNormFoldBackward<double>{shape, w, weight, dw, dweight});
  results.merge(Results{{"y", y.values()}, {"dw", dw.values()}, {"dweight", dweight.values()}});
  return results;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("rmsnorm_linear: the layer is the norm, then the product") {
    for (const int z_stride : {0, 50}) {
      const Problem p({5, 20, 7, 1e-2, z_stride});
      const Values y = layer(p).at("y");
      for (int row = 0; row < 5; ++row) {
        Values x(p.x.begin() + row * 20, p.x.begin() + (row + 1) * 20);
        double squares = 0;
        for (int c = 0; c < 20; ++c) {
          if (z_stride > 0) {
            const double z = p.z[row * z_stride + z_stride - 20 + c];
            x[c] *= z / (1 + std::exp(-z));
          }
          squares += x[c] * x[c];
        }
        for (int j = 0; j < 7; ++j) {
          double want = 0;
          for (int c = 0; c < 20; ++c)
            want += x[c] / std::sqrt(squares / 20 + 1e-2) * p.weight[c] * p.w[j * 20 + c];
          CHECK(y[row * 7 + j] == doctest::Approx(want).epsilon(1e-12));
        }
      }
    }
  }

  TEST_CASE("rmsnorm_linear: gradients against central differences") {
    for (const RmsNormLinearShape& shape :
         {RmsNormLinearShape{5, 12, 7, 1e-5}, RmsNormLinearShape{3, 1, 2, 4},
          RmsNormLinearShape{5, 12, 7, 1e-5, 12}}) {
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
      if (shape.gated()) check("z", &Problem::z, "dz");
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
    CpuQueue one(1), three(3);
    for (const int z_stride : {0, 70}) {
      const Problem p({301, 70, 33, 1e-5, z_stride});
      expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
    }
  }

  TEST_CASE("rmsnorm_linear: shapes outside the contract are refused") {
    rmsnorm_linear_check({1, 1, 1, 1e-5});
    CHECK_THROWS_AS(rmsnorm_linear_check({0, 1, 1, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 0, 1, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 1, 0, 1e-5}), Error);
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 1, 1, 0}), Error);
    rmsnorm_linear_check({1, 4, 1, 1e-5, 4});
    CHECK_THROWS_AS(rmsnorm_linear_check({1, 4, 1, 1e-5, 3}), Error);
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

  TEST_CASE("rmsnorm_linear: CUDA agrees with the CPU where shared memory is small") {
    CudaQueue queue = cuda_queue();
    queue.limits.shared_bytes_per_block = 48 * 1024;
    for (const RmsNormLinearShape& shape :
         {RmsNormLinearShape{700, 192, 128, 1e-5}, RmsNormLinearShape{700, 192, 128, 1e-5, 384}})
      check_cuda(Problem(shape), kRmsNormLinearTolerance, Solve{}, queue);
  }

  TEST_CASE("rmsnorm_linear: CUDA, the product from W itself has the bits of the two kernels") {
    int few = 0;
    for (const RmsNormLinearShape& shape : kRmsNormLinearCases) {
      if (shape.gated()) continue;
      INFO(shape.rows, " rows, ", shape.in, " to ", shape.out);
      few += inference_agrees<f16>(Problem(shape).rounded<f16>());
      inference_agrees<bf16>(Problem(shape).rounded<bf16>());
    }
    CHECK(few == 3);
  }
}
#endif

}  // namespace fm::test
