// One kernel against a product and its gates on the CPU.
#include "kernels/swiglu/swiglu_few_rows.h"

#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "tests/support/cuda.h"

#if FM_CUDA
namespace fm::test {
namespace {

struct Problem {
  std::int64_t rows;
  int width, hidden;
  Values x, w12, bias;

  Problem(std::int64_t r, int w, int h)
      : rows(r),
        width(w),
        hidden(h),
        x(normals(r * w, 1)),
        w12(normals(std::int64_t{2} * h * w, 2, 0.2)),
        bias(normals(std::int64_t{2} * h, 3)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.x, &p.w12, &p.bias}) *values = round_to<T>(*values);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> x(queue, p.x), w12(queue, p.w12), bias(queue, p.bias), h(queue, p.rows * p.hidden);
    if constexpr (std::is_same_v<Q, CpuQueue>) {
      Array<T, Q> ab(queue, 2 * p.rows * p.hidden);
      linear_forward(queue, LinearForward<T, T>{{p.rows, p.width, 2 * p.hidden}, x, w12, bias, ab});
      swiglu_forward(queue, SwigluForward<T>{{p.rows, p.hidden}, ab, h});
    } else {
      swiglu_few_rows(queue, SwigluFewRows<T>{p.rows, p.width, p.hidden, x, w12, bias, h});
    }
    return {{"h", h.values()}};
  }
};

// One rounding of the result: half an ulp, at most 2^-11 and 2^-8 of each element.
constexpr Tolerance kTolerance = {1e-5, 5e-4, 4e-3};

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("swiglu_few_rows: one kernel finds what a product and its gates do") {
    // The paper's, one row, tiles that are not full, and every length of the sum.
    for (const Problem& p : {Problem(196, 128, 512), Problem(1, 8, 4), Problem(35, 136, 20),
                             Problem(197, 256, 36), Problem(67, 504, 100)}) {
      INFO(p.rows, " rows, ", p.width, " to ", p.hidden);
      Solve solve;
      check_cuda_type<f16>(p, kTolerance, solve, cuda_queue());
      check_cuda_type<bf16>(p, kTolerance, solve, cuda_queue());
    }
  }

  TEST_CASE("swiglu_few_rows: shapes it is not for") {
    CHECK(swiglu_few_rows_fits(512, 512, 4, DType::f16));
    CHECK(!swiglu_few_rows_fits(513, 512, 4, DType::f16));
    CHECK(!swiglu_few_rows_fits(512, 516, 4, DType::bf16));
    CHECK(!swiglu_few_rows_fits(512, 128, 6, DType::f16));
    CHECK(!swiglu_few_rows_fits(1, 128, 4, DType::f32));
  }
}

}  // namespace fm::test
#endif
