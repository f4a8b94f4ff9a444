#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu_mlp/swiglu_mlp_cases.h"
#include "tests/support/cuda.h"
#include "tests/support/files.h"

#if FM_CUDA
namespace fm::test {
namespace {

struct Problem {
  SwigluMlpShape shape;
  Values x, w12, b12, w3, b3, dy;

  explicit Problem(const SwigluMlpShape& s)
      : shape(s),
        x(normals(s.rows * s.width, 1)),
        w12(normals(std::int64_t{2} * s.hidden * s.width, 2, 1 / std::sqrt(s.width))),
        b12(normals(2 * s.hidden, 3)),
        w3(normals(std::int64_t{1} * s.width * s.hidden, 4, 1 / std::sqrt(s.width))),
        b3(normals(s.width, 5)),
        dy(normals(s.rows * s.width, 6)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.x, &p.w12, &p.b12, &p.w3, &p.b3, &p.dy})
      *values = round_to<T>(*values);
    return p;
  }
};

// The fused kernels on CUDA; on the CPU what they fuse.
struct Solve {
  bool in_place = false;  // dx takes dy's place

  template <class T>
  Results operator()(CudaQueue& queue, const Problem& p) const {
    const SwigluMlpShape& s = p.shape;
    const std::int64_t weights = std::int64_t{1} * s.hidden * s.width;
    Array<T, CudaQueue> x(queue, p.x), w12(queue, p.w12), b12(queue, p.b12), w3(queue, p.w3),
        b3(queue, p.b3), dy(queue, p.dy), y(queue, s.rows * s.width), dx(queue, s.rows * s.width);
    Array<float, CudaQueue> dw12(queue, 2 * weights), db12(queue, 2 * s.hidden),
        dw3(queue, weights), db3(queue, s.width);
    Array<char, CudaQueue> workspace(queue,
                                     static_cast<std::int64_t>(swiglu_mlp_backward_workspace(s)));
    swiglu_mlp_forward(queue, SwigluMlpForward<T>{s, x, w12, b12, w3, b3, y});
    swiglu_mlp_backward(
        queue, SwigluMlpBackward<T>{s, x, w12, b12, w3, dy, in_place ? dy.data() : dx.data(), dw12,
                                    db12, dw3, db3, workspace.data()});
    return {{"y", y.values()},       {"dx", in_place ? dy.values() : dx.values()},
            {"dw12", dw12.values()}, {"db12", db12.values()},
            {"dw3", dw3.values()},   {"db3", db3.values()}};
  }

  template <class T>
  Results operator()(CpuQueue& queue, const Problem& p) const {
    const SwigluMlpShape& s = p.shape;
    const std::int64_t units = s.rows * s.hidden, weights = std::int64_t{1} * s.hidden * s.width;
    const LinearShape first{.rows = s.rows, .in = s.width, .out = 2 * s.hidden};
    const LinearShape second{.rows = s.rows, .in = s.hidden, .out = s.width};
    Array<T, CpuQueue> x(queue, p.x), w12(queue, p.w12), b12(queue, p.b12), w3(queue, p.w3),
        b3(queue, p.b3), dy(queue, p.dy), ab(queue, 2 * units), h(queue, units), dh(queue, units),
        y(queue, s.rows * s.width), dx(queue, s.rows * s.width), dw12(queue, 2 * weights),
        db12(queue, 2 * s.hidden), dw3(queue, weights), db3(queue, s.width);
    Array<char, CpuQueue> workspace(
        queue, static_cast<std::int64_t>(std::max(linear_backward_weight_workspace(first),
                                                  linear_backward_weight_workspace(second))));
    linear_forward(queue, LinearForward<T, T>{first, x, w12, b12, ab});
    swiglu_forward(queue, SwigluForward<T>{{s.rows, s.hidden}, ab, h});
    linear_forward(queue, LinearForward<T, T>{second, h, w3, b3, y});
    linear_backward_weight(queue,
                           LinearBackwardWeight<T>{second, dy, h, dw3, db3, workspace.data()});
    linear_backward_input(queue, LinearBackwardInput<T>{second, dy, w3, dh});
    swiglu_backward(queue, SwigluBackward<T>{{s.rows, s.hidden}, ab, dh, ab, h});
    linear_backward_weight(queue,
                           LinearBackwardWeight<T>{first, ab, x, dw12, db12, workspace.data()});
    linear_backward_input(queue, LinearBackwardInput<T>{first, ab, w12, dx});
    return {{"y", y.values()},       {"dx", dx.values()},   {"dw12", dw12.values()},
            {"db12", db12.values()}, {"dw3", dw3.values()}, {"db3", db3.values()}};
  }
};

bool there_are_kernels() {
  const bool fits = swiglu_mlp_fits(cuda_queue(), {1, 128, 64}, DType::f16);
  if (!fits) MESSAGE("no kernels for ", cuda_queue().limits.name);
  return fits;
}

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("swiglu_mlp: CUDA agrees with products and gates apart") {
    if (!there_are_kernels()) return;
    for (const SwigluMlpShape& shape : kSwigluMlpCases) {
      INFO(shape.rows, " rows, hidden ", shape.hidden);
      const Problem problem(shape);
      Solve solve;
      check_cuda_type<f16>(problem, kSwigluMlpTolerance, solve, cuda_queue());
      if (!small_effort()) check_cuda_type<bf16>(problem, kSwigluMlpTolerance, solve, cuda_queue());
    }
  }

  TEST_CASE("swiglu_mlp: dx may take the place of dy") {
    if (!there_are_kernels()) return;
    const Problem p = Problem({1000, 128, 128}).rounded<f16>();
    expect_same_bits(Solve{true}.operator()<f16>(cuda_queue(), p),
                     Solve{false}.operator()<f16>(cuda_queue(), p));
  }

  TEST_CASE("swiglu_mlp: large values saturate, infinities and NaN come through") {
    if (!there_are_kernels()) return;
    Problem p = Problem({3, 128, 64}).rounded<f16>();
    for (std::size_t i = 0; i < 128; ++i) p.x[i] = p.w12[i] = 16;  // a = 32768 in unit 0
    for (std::size_t i = 128; i < 256; ++i) p.x[i] = -16;          // a = -32768: nothing of it
    p.x[2 * 128] = std::numeric_limits<double>::infinity();
    const Results r = Solve{}.operator()<f16>(cuda_queue(), p);
    CHECK(std::isfinite(r.at("y")[128]));
    CHECK(std::isfinite(r.at("dx")[128]));
    CHECK(!std::isfinite(r.at("y")[2 * 128]));
    CHECK(!std::isfinite(r.at("dx")[2 * 128]));
    CHECK(!std::isfinite(r.at("dw12")[0]));
  }

  TEST_CASE("swiglu_mlp: it says which shapes and devices it takes") {
    CHECK(!swiglu_mlp_fits(cuda_queue(), {7, 128, 512}, DType::f32));
    CHECK(!swiglu_mlp_fits(cuda_queue(), {7, 64, 512}, DType::f16));
    CHECK(!swiglu_mlp_fits(cuda_queue(), {7, 128, 96}, DType::f16));
    CudaQueue older = cuda_queue();
    older.limits.compute_capability = 80;
    CHECK(!swiglu_mlp_fits(older, {7, 128, 512}, DType::f16));
    CudaQueue smaller = cuda_queue();
    smaller.limits.shared_bytes_per_block = 99 << 10;
    CHECK(!swiglu_mlp_fits(smaller, {7, 128, 512}, DType::f16));
    expect_fault(Fault::usage, "[swiglu_mlp] width must be 128", [] {
      swiglu_mlp_forward(cuda_queue(), SwigluMlpForward<f16>{.shape = {7, 96, 512},
                                                             .x = nullptr,
                                                             .w12 = nullptr,
                                                             .b12 = nullptr,
                                                             .w3 = nullptr,
                                                             .b3 = nullptr,
                                                             .y = nullptr});
    });
  }
}

}  // namespace fm::test
#endif
