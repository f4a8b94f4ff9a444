#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/matmul_cases.h"
#include "tests/support/cuda.h"

#if FM_CUDA
#include <cublas_v2.h>

#include "kernels/base/cuda_graph.h"
#include "kernels/matmul/product.h"
#endif

namespace fm::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Where the elements of x or y lie in an array that may be wider than they are.
struct Placement {
  std::int64_t rows, width, groups, stride, group, offset;

  // An array with value(0), value(1), ... in its elements and `gap` everywhere else.
  template <class Value>
  Values fill(Value&& value, double gap) const {
    Values all(
        static_cast<std::size_t>(offset + (rows - 1) * stride + (groups - 1) * group + width), gap);
    std::size_t index = 0;
    for (std::int64_t g = 0; g < groups; ++g)
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < width; ++i)
          all[static_cast<std::size_t>(offset + g * group + r * stride + i)] = value(index++);
    return all;
  }
  Values put(const Values& values, double gap) const {
    return fill([&](std::size_t i) { return values[i]; }, gap);
  }
};

// Gaps of inputs hold values that would be noticed in a sum; outputs start as NaN with zero gaps,
// so that a missing or a stray write is noticed, too.
struct Problem {
  LinearShape shape;  // defaults filled in
  Placement in, out;
  Values x, w, bias, dy, dx_before;

  explicit Problem(const LinearShape& s)
      : shape(checked(s)),
        in{shape.rows,     shape.in,      shape.groups,
           shape.x_stride, shape.x_group, shape.x_group - shape.in},
        out{shape.rows, shape.out, shape.groups, shape.y_stride, shape.y_group, 0} {
    const std::int64_t inputs = shape.groups * shape.rows * shape.in;
    const std::int64_t outputs = shape.groups * shape.rows * shape.out;
    x = in.put(normals(inputs, 1), 1000);
    w = normals(std::int64_t{shape.groups} * shape.out * shape.in, 2, 0.3);
    bias = normals(std::int64_t{shape.groups} * shape.out, 3);
    dy = out.put(normals(outputs, 4), 1000);
    dx_before = in.put(normals(inputs, 5), 0);
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.x, &p.w, &p.bias, &p.dy, &p.dx_before})
      *values = round_to<T>(*values);
    return p;
  }
  Values no_x() const {
    return in.fill([](std::size_t) { return kNaN; }, 0);
  }
  Values no_y() const {
    return out.fill([](std::size_t) { return kNaN; }, 0);
  }
};

// What comes out in the type of the operands.
struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> x(queue, p.x), w(queue, p.w), bias(queue, p.bias), dy(queue, p.dy);
    Array<T, Q> y(queue, p.no_y()), y_plain(queue, p.no_y());
    Array<T, Q> dx(queue, p.no_x()), dx_sum(queue, p.dx_before);
    const std::int64_t at = p.in.offset;
    linear_forward(queue, LinearForward<T, T>{p.shape, x + at, w, bias, y});
    linear_forward(queue, LinearForward<T, T>{p.shape, x + at, w, nullptr, y_plain});
    linear_backward_input(queue, LinearBackwardInput<T>{p.shape, dy, w, dx + at});
    linear_backward_input(queue, LinearBackwardInput<T>{p.shape, dy, w, dx_sum + at, true});
    return {{"y", y.values()},
            {"y_plain", y_plain.values()},
            {"dx", dx.values()},
            {"dx_sum", dx_sum.values()}};
  }
};

// What comes out in full precision.
struct SolveWide {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> x(queue, p.x), w(queue, p.w), bias(queue, p.bias), dy(queue, p.dy);
    Array<acc_t<T>, Q> y(queue, p.no_y());
    Array<acc_t<T>, Q> dw(queue, static_cast<std::int64_t>(p.w.size()));
    Array<acc_t<T>, Q> dbias(queue, static_cast<std::int64_t>(p.bias.size()));
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(linear_backward_weight_workspace(p.shape)));
    const T* x_at = x + p.in.offset;
    linear_forward(queue, LinearForward<T, acc_t<T>>{p.shape, x_at, w, bias, y});
    linear_backward_weight(queue,
                           LinearBackwardWeight<T>{p.shape, dy, x_at, dw, dbias, workspace.data()});
    return {{"y", y.values()}, {"dw", dw.values()}, {"dbias", dbias.values()}};
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("linear: gradients against central differences") {
    const LinearShape shapes[] = {{7, 3, 5}, {700, 12, 70}, {9, 8, 16, 2, 272, 0, 136}};
    for (const LinearShape& shape : shapes) {
      const Problem p(shape);
      const Values dx = Solve{}.operator()<double>(cpu_queue(), p).at("dx");
      const Results wide = SolveWide{}.operator()<double>(cpu_queue(), p);
      const auto loss = [&](Values Problem::*input) {
        return [&p, input](const Values& values) {
          Problem moved = p;
          moved.*input = values;
          return dot(Solve{}.operator()<double>(cpu_queue(), moved).at("y"), p.dy);
        };
      };
      check_gradient("x", p.x, dx, loss(&Problem::x));
      check_gradient("w", p.w, wide.at("dw"), loss(&Problem::w));
      check_gradient("bias", p.bias, wide.at("dbias"), loss(&Problem::bias));
    }
  }

  TEST_CASE("linear: the product of small matrices, by hand") {
    // Two groups side by side: y = x w^T + b with w of one row.
    const LinearShape shape{2, 2, 1, 2};
    Array<double, CpuQueue> x(cpu_queue(), Values{1, 2, 3, 4, 5, 6, 7, 8}),
        w(cpu_queue(), Values{1, 10, 100, 1000}), bias(cpu_queue(), Values{0.5, -0.5}),
        y(cpu_queue(), 4);
    linear_forward(cpu_queue(), LinearForward<double, double>{shape, x, w, bias, y});
    CHECK(y.values() == Values{21.5, 4299.5, 65.5, 8699.5});
  }

  TEST_CASE("linear: float agrees with double") {
    for (const LinearShape& shape : kMatmulCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p),
                   Solve{}.operator()<double>(cpu_queue(), p), kMatmulTolerance.f32);
      expect_close(SolveWide{}.operator()<float>(cpu_queue(), p),
                   SolveWide{}.operator()<double>(cpu_queue(), p), kMatmulWideTolerance.f32);
    }
  }

  TEST_CASE("linear: the bits do not depend on the number of threads") {
    CpuQueue one(1), three(3);
    for (const LinearShape& shape : {LinearShape{3000, 40, 72}, LinearShape{1111, 24, 8, 2}}) {
      const Problem p(shape);
      expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
      expect_same_bits(SolveWide{}.operator()<float>(one, p),
                       SolveWide{}.operator()<float>(three, p));
    }
  }

  TEST_CASE("linear: accumulate adds to what was there") {
    const Problem p({70, 12, 20});
    const Results r = Solve{}.operator()<double>(cpu_queue(), p);
    Values want = r.at("dx");
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += p.dx_before[i];
    expect_close("dx_sum", r.at("dx_sum"), want, 1e-14);
  }

  TEST_CASE("linear: a bias gradient nobody wants changes nothing") {
    const Problem p({600, 12, 20});
    CpuQueue& queue = cpu_queue();
    Array<double, CpuQueue> x(queue, p.x), dy(queue, p.dy), dw(queue, 12 * 20);
    Bytes<CpuQueue> workspace(queue,
                              static_cast<std::int64_t>(linear_backward_weight_workspace(p.shape)));
    linear_backward_weight(
        queue, LinearBackwardWeight<double>{p.shape, dy, x, dw, nullptr, workspace.data()});
    CHECK(dw.values() == SolveWide{}.operator()<double>(queue, p).at("dw"));
  }

  TEST_CASE("linear: shapes outside the contract are refused") {
    CHECK_THROWS_AS(checked({0, 8, 8}), Error);
    CHECK_THROWS_AS(checked({4, 8, 0}), Error);
    CHECK_THROWS_AS(checked({4, 8, 8, 1, 7}), Error);
    CHECK_THROWS_AS(checked({4, 8, 8, 2, 12}), Error);
    CHECK_THROWS_AS(checked({4, 8, 8, 2, 8, 0, 24}), Error);
    CHECK_NOTHROW(checked({4, 8, 8, 2, 8, 0, 32}));
  }
}

#if FM_CUDA
namespace {

// The same results by the kernel that stands in where cuBLASLt has no algorithm.
struct SolveSimple {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const LinearShape& s = p.shape;
    const std::int64_t at = p.in.offset, weights = std::int64_t{s.out} * s.in;
    Array<T, Q> x(queue, p.x), w(queue, p.w), dy(queue, p.dy);
    Array<T, Q> dx(queue, p.no_x()), dx_sum(queue, p.dx_before);
    Array<acc_t<T>, Q> y(queue, p.no_y()), dw(queue, static_cast<std::int64_t>(p.w.size()));
    if constexpr (std::is_same_v<Q, CpuQueue>) {
      Bytes<Q> workspace(queue, static_cast<std::int64_t>(linear_backward_weight_workspace(s)));
      linear_forward(queue, LinearForward<T, acc_t<T>>{s, x + at, w, nullptr, y});
      linear_backward_input(queue, LinearBackwardInput<T>{s, dy, w, dx + at});
      linear_backward_input(queue, LinearBackwardInput<T>{s, dy, w, dx_sum + at, true});
      linear_backward_weight(queue,
                             LinearBackwardWeight<T>{s, dy, x + at, dw, nullptr, workspace.data()});
    } else {
      const Operand<T> x_rows{x + at, s.x_stride, s.x_group, true};
      const Operand<T> x_columns{x + at, s.x_stride, s.x_group, false};
      const Operand<T> dy_rows{dy, s.y_stride, s.y_group, true};
      const Operand<T> dy_columns{dy, s.y_stride, s.y_group, false};
      const Operand<T> w_rows{w, s.in, weights, true}, w_columns{w, s.in, weights, false};
      multiply_simple(queue, Product<T, float>{s.rows, s.out, s.in, s.groups, x_rows, w_rows, y,
                                               s.y_stride, s.y_group});
      multiply_simple(queue, Product<T, T>{s.rows, s.in, s.out, s.groups, dy_rows, w_columns,
                                           dx + at, s.x_stride, s.x_group});
      multiply_simple(queue, Product<T, T>{s.rows, s.in, s.out, s.groups, dy_rows, w_columns,
                                           dx_sum + at, s.x_stride, s.x_group, true});
      multiply_simple(queue, Product<T, float>{s.out, s.in, s.rows, s.groups, dy_columns, x_columns,
                                               dw, s.in, weights});
    }
    return {
        {"y", y.values()}, {"dx", dx.values()}, {"dx_sum", dx_sum.values()}, {"dw", dw.values()}};
  }
};

struct Cublas {
  cublasHandle_t handle = nullptr;
  explicit Cublas(CudaQueue& queue) {
    REQUIRE(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasSetStream(handle, queue.stream()) == CUBLAS_STATUS_SUCCESS);
  }
  ~Cublas() { cublasDestroy(handle); }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // Column-major d [m, n] = op(a) op(b), fp16 in and fp32 out.
  void multiply(cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const f16* a,
                int lda, const f16* b, int ldb, float* d) const {
    const float one = 1, zero = 0;
    REQUIRE(cublasGemmEx(handle, op_a, op_b, m, n, k, &one, a, CUDA_R_16F, lda, b, CUDA_R_16F, ldb,
                         &zero, d, CUDA_R_32F, m, CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
  }
};

// Arrays of a linear layer on the GPU, and its three products in one call.
struct Layer {
  CudaQueue& queue;
  LinearShape shape;
  Array<f16, CudaQueue> x, w, bias, dy, y, dx;
  Array<float, CudaQueue> dw, dbias;
  Bytes<CudaQueue> workspace;

  Layer(CudaQueue& q, const Problem& p)
      : queue(q),
        shape(p.shape),
        x(q, p.x),
        w(q, p.w),
        bias(q, p.bias),
        dy(q, p.dy),
        y(q, p.no_y()),
        dx(q, p.no_x()),
        dw(q, static_cast<std::int64_t>(p.w.size())),
        dbias(q, static_cast<std::int64_t>(p.bias.size())),
        workspace(q, static_cast<std::int64_t>(linear_backward_weight_workspace(p.shape))) {}

  void run() {
    linear_forward(queue, LinearForward<f16, f16>{shape, x, w, bias, y});
    linear_backward_input(queue, LinearBackwardInput<f16>{shape, dy, w, dx});
    linear_backward_weight(queue,
                           LinearBackwardWeight<f16>{shape, dy, x, dw, dbias, workspace.data()});
  }
  Results results() const {
    return {{"y", y.values()}, {"dx", dx.values()}, {"dw", dw.values()}, {"dbias", dbias.values()}};
  }
};

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("linear: CUDA agrees with the CPU") {
    for (const LinearShape& shape : kMatmulCases) {
      INFO(shape.groups, " x [", shape.rows, ", ", shape.in, "] to ", shape.out);
      check_cuda(Problem(shape), kMatmulTolerance, Solve{});
      check_cuda(Problem(shape), kMatmulWideTolerance, SolveWide{});
    }
  }

  TEST_CASE("linear: long sums on CUDA agree with the CPU") {
    for (const LinearShape& shape : kMatmulLong)
      check_cuda(Problem(shape), kMatmulWideTolerance, SolveWide{});
  }

  TEST_CASE("linear: many rows on CUDA agree with the CPU") {
    // Fewer multiprocessors: more tiles a block, which go round its places in shared memory.
    for (const int multiprocessors : {30, 9}) {
      CudaQueue queue(0);
      queue.limits.multiprocessors = multiprocessors;
      for (const LinearShape& shape : kMatmulManyRows) {
        INFO("[", shape.rows, ", ", shape.in, "] to ", shape.out);
        check_cuda(Problem(shape), kMatmulTolerance, Solve{}, queue);
      }
    }
    CudaQueue queue(0);  // too little shared memory for the kernel
    queue.limits.multiprocessors = 30;
    queue.limits.shared_bytes_per_block = std::size_t{99} << 10;
    check_cuda(Problem({5003, 128, 384}), kMatmulTolerance, Solve{}, queue);
  }

  TEST_CASE("linear: many rows do without cuBLASLt on Hopper") {
    CudaQueue queue(0);
    if (queue.limits.compute_capability != 90) return;
    queue.limits.multiprocessors = 30;
    Layer up(queue, Problem({5003, 128, 384})), down(queue, Problem({5003, 384, 128}));
    const auto products = [&] {
      linear_forward(queue, LinearForward<f16, f16>{up.shape, up.x, up.w, up.bias, up.y});
      linear_backward_input(queue, LinearBackwardInput<f16>{down.shape, down.dy, down.w, down.dx});
    };
    products();
    CHECK(matmul_plan_count(queue).all == 0);
    const Results eager = {{"y", up.y.values()}, {"dx", down.dx.values()}};
    const CudaGraph graph(queue, products);
    fill_bytes(queue, up.y, 0xff, up.y.bytes());
    fill_bytes(queue, down.dx, 0xff, down.dx.bytes());
    graph.launch(queue);
    expect_same_bits(eager, {{"y", up.y.values()}, {"dx", down.dx.values()}});
  }

  TEST_CASE("linear: smaller GPUs find the same weight gradients") {
    // Too little shared memory for Hopper's kernel, for clusters, for any kernel of our own.
    for (const std::size_t shared_bytes :
         {std::size_t{170} << 10, std::size_t{99} << 10, std::size_t{48} << 10}) {
      CudaQueue queue = cuda_queue();
      queue.limits.shared_bytes_per_block = shared_bytes;
      for (const LinearShape& shape : {LinearShape{4999, 256, 136, 2}, LinearShape{4099, 128, 384}})
        check_cuda(Problem(shape), kMatmulWideTolerance, SolveWide{}, queue);
    }
  }

  TEST_CASE("linear: few multiprocessors find the same weight gradients") {
    // Two or three long slices: rows go round the stages of Hopper's kernel many times.
    CudaQueue queue = cuda_queue();
    queue.limits.multiprocessors = 25;
    for (const LinearShape& shape :
         {LinearShape{5001, 128, 512}, LinearShape{6007, 512, 128}, LinearShape{4999, 256, 136, 2}})
      check_cuda(Problem(shape), kMatmulWideTolerance, SolveWide{}, queue);
  }

  TEST_CASE("linear: weight gradients on CUDA without the bias's, and captured") {
    CudaQueue& queue = cuda_queue();
    for (const LinearShape& shape : kMatmulLong) {
      const Problem p = Problem(shape).rounded<f16>();
      Array<f16, CudaQueue> x(queue, p.x), dy(queue, p.dy);
      Array<float, CudaQueue> dw(queue, static_cast<std::int64_t>(p.w.size()));
      Bytes<CudaQueue> workspace(
          queue, static_cast<std::int64_t>(linear_backward_weight_workspace(p.shape)));
      const auto run = [&] {
        linear_backward_weight(queue, LinearBackwardWeight<f16>{p.shape, dy, x + p.in.offset, dw,
                                                                nullptr, workspace.data()});
      };
      run();
      const Results eager = {{"dw", dw.values()}};
      expect_close("dw", eager.at("dw"), SolveWide{}.operator()<double>(cpu_queue(), p).at("dw"),
                   kMatmulWideTolerance.f16);
      const CudaGraph graph(queue, run);
      fill_bytes(queue, dw, 0xff, dw.bytes());
      graph.launch(queue);
      expect_same_bits(eager, {{"dw", dw.values()}});
    }
  }

  TEST_CASE("linear: the kernel for what cuBLASLt cannot do agrees with the CPU") {
    for (const LinearShape& shape : kMatmulCases)
      check_cuda(Problem(shape), kMatmulTolerance, SolveSimple{});
  }

  TEST_CASE("linear: cuBLAS finds the same products") {
    const int rows = 1000, in = 128, out = 384;
    const Problem p = Problem({rows, in, out}).rounded<f16>();
    CudaQueue& queue = cuda_queue();
    const Cublas cublas(queue);
    Layer layer(queue, p);
    Array<float, CudaQueue> y(queue, p.no_y()), y_cublas(queue, p.no_y());
    Array<float, CudaQueue> dw_cublas(queue, std::int64_t{in} * out);
    layer.run();
    linear_forward(queue, LinearForward<f16, float>{p.shape, layer.x, layer.w, nullptr, y});
    cublas.multiply(CUBLAS_OP_T, CUBLAS_OP_N, out, rows, in, layer.w, in, layer.x, in, y_cublas);
    cublas.multiply(CUBLAS_OP_N, CUBLAS_OP_T, in, out, rows, layer.x, in, layer.dy, out, dw_cublas);
    expect_close("y", y.values(), y_cublas.values(), kMatmulWideTolerance.f16);
    expect_close("dw", layer.dw.values(), dw_cublas.values(), kMatmulWideTolerance.f16);
  }

  TEST_CASE("linear: a shape is planned once, and captured afterwards") {
    CudaQueue queue(0);
    Layer layer(queue, Problem({1000, 128, 384}));
    CHECK(matmul_plan_count(queue).all == 0);
    layer.run();
    const Results eager = layer.results();
    const std::size_t plans = matmul_plan_count(queue).all;
    CHECK(plans == 3);
    CHECK(matmul_plan_count(queue).without_algorithm == 0);
    layer.run();
    CHECK(matmul_plan_count(queue).all == plans);

    const CudaGraph graph(queue, [&] { layer.run(); });
    CHECK(matmul_plan_count(queue).all == plans);
    fill_bytes(queue, layer.y, 0xff, layer.y.bytes());
    fill_bytes(queue, layer.dx, 0xff, layer.dx.bytes());
    fill_bytes(queue, layer.dw, 0xff, layer.dw.bytes());
    fill_bytes(queue, layer.dbias, 0xff, layer.dbias.bytes());
    graph.launch(queue);
    expect_same_bits(eager, layer.results());
  }
}
#endif

}  // namespace fm::test
