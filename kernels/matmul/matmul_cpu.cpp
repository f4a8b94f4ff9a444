// The products on the CPU: OpenBLAS on one thread each, our own threads over fixed blocks, so that
// the bits do not depend on the number of threads.
#include <cblas.h>

#include <mutex>

#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/weight_gradient.h"

extern "C" void openblas_set_num_threads(int);  // for a cblas.h that leaves it out

namespace fm {
namespace {

// c [m, n] = op(a) op(b) + beta c, all row-major; k is the length of the sums.
struct GemmSize {
  std::int64_t m, n, k;
};
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, GemmSize s, const float* a, std::int64_t lda,
          const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  cblas_sgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(s.m), static_cast<blasint>(s.n),
              static_cast<blasint>(s.k), 1, a, static_cast<blasint>(lda), b,
              static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, GemmSize s, const double* a, std::int64_t lda,
          const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  cblas_dgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(s.m), static_cast<blasint>(s.n),
              static_cast<blasint>(s.k), 1, a, static_cast<blasint>(lda), b,
              static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}

void single_threaded_blas() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

// sum [width] = column sums of from [rows, width].
template <class T>
inline void add_columns(const T* from, std::int64_t rows, std::int64_t stride, std::int64_t width,
                        T* sum) {
  std::fill(sum, sum + width, T{0});
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* x = from + row * stride;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) sum[i] += x[i];
  }
}
FM_SIMD void column_sums(const float* from, std::int64_t rows, std::int64_t stride,
                         std::int64_t width, float* sum) {
  add_columns(from, rows, stride, width, sum);
}
void column_sums(const double* from, std::int64_t rows, std::int64_t stride, std::int64_t width,
                 double* sum) {
  add_columns(from, rows, stride, width, sum);
}

// body(group, first row, number of rows) over blocks of rows of every group: enough blocks for the
// threads of a large machine, and rows enough in each that packing w again costs little.
template <class Body>
void for_row_blocks(CpuQueue& queue, const LinearShape& s, Body&& body) {
  const std::int64_t grain = std::clamp<std::int64_t>((s.rows + 63) / 64, 32, 512);
  const std::int64_t blocks = (s.rows + grain - 1) / grain;
  parallel_for(queue, s.groups * blocks, 1, [&](std::int64_t index, std::int64_t) {
    const std::int64_t first = index % blocks * grain;
    body(index / blocks, first, std::min(grain, s.rows - first));
  });
}

// to [count] += the `parts - 1` arrays that lie one after another in `others`, in order.
template <class T>
void add_parts(CpuQueue& queue, T* to, const T* others, std::int64_t count, std::int64_t parts) {
  parallel_for(queue, parts > 1 ? count : 0, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = 0; part < parts - 1; ++part) {
      const T* from = others + part * count;
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
    }
  });
}

}  // namespace

template <class T, class Y>
void linear_forward(CpuQueue& queue, const LinearForward<T, Y>& p) {
  single_threaded_blas();
  const LinearShape s = checked(p.shape);
  for_row_blocks(queue, s, [&](std::int64_t group, std::int64_t first, std::int64_t rows) {
    const T* x = p.x + group * s.x_group + first * s.x_stride;
    const T* w = p.w + group * s.out * s.in;
    Y* y = p.y + group * s.y_group + first * s.y_stride;
    if (p.bias) {
      const T* bias = p.bias + group * s.out;
      for (std::int64_t row = 0; row < rows; ++row)
        std::copy(bias, bias + s.out, y + row * s.y_stride);
    }
    gemm(CblasNoTrans, CblasTrans, {rows, s.out, s.in}, x, s.x_stride, w, s.in, p.bias ? 1 : 0, y,
         s.y_stride);
  });
}

template <class T>
void linear_backward_input(CpuQueue& queue, const LinearBackwardInput<T>& p) {
  single_threaded_blas();
  const LinearShape s = checked(p.shape);
  for_row_blocks(queue, s, [&](std::int64_t group, std::int64_t first, std::int64_t rows) {
    const T* dy = p.dy + group * s.y_group + first * s.y_stride;
    const T* w = p.w + group * s.out * s.in;
    T* dx = p.dx + group * s.x_group + first * s.x_stride;
    gemm(CblasNoTrans, CblasNoTrans, {rows, s.in, s.out}, dy, s.y_stride, w, s.in,
         p.accumulate ? 1 : 0, dx, s.x_stride);
  });
}

// The first part of the rows goes to dw and dbias themselves, every other one to its own copy of
// them in the workspace; then the copies are added in order.
template <class T>
void linear_backward_weight(CpuQueue& queue, const LinearBackwardWeight<T>& p) {
  single_threaded_blas();
  const LinearShape s = checked(p.shape);
  const RowSplit split = cpu_weight_split(s);
  const std::int64_t out_blocks = (s.out + kOutBlock - 1) / kOutBlock;
  const std::int64_t weights = std::int64_t{s.groups} * s.out * s.in;
  const std::int64_t biases = std::int64_t{s.groups} * s.out;
  T* const dw_parts = static_cast<T*>(p.workspace);
  T* const dbias_parts = dw_parts + (split.count - 1) * weights;

  parallel_for(queue, s.groups * out_blocks * split.count, 1,
               [&](std::int64_t index, std::int64_t) {
                 const std::int64_t part = index % split.count;
                 const std::int64_t block = index / split.count % out_blocks;
                 const std::int64_t group = index / split.count / out_blocks;
                 const std::int64_t row = part * split.rows, column = block * kOutBlock;
                 const std::int64_t rows = std::clamp<std::int64_t>(s.rows - row, 0, split.rows);
                 const std::int64_t width = std::min<std::int64_t>(kOutBlock, s.out - column);
                 const std::int64_t output = group * s.out + column;
                 const T* dy = p.dy + group * s.y_group + row * s.y_stride + column;
                 const T* x = p.x + group * s.x_group + row * s.x_stride;
                 T* dw = part == 0 ? p.dw : dw_parts + (part - 1) * weights;
                 gemm(CblasTrans, CblasNoTrans, {width, s.in, rows}, dy, s.y_stride, x, s.x_stride,
                      0, dw + output * s.in, s.in);
                 if (p.dbias) {
                   T* dbias = part == 0 ? p.dbias : dbias_parts + (part - 1) * biases;
                   column_sums(dy, rows, s.y_stride, width, dbias + output);
                 }
               });
  add_parts(queue, p.dw, dw_parts, weights, split.count);
  if (p.dbias) add_parts(queue, p.dbias, dbias_parts, biases, split.count);
}

std::size_t linear_backward_weight_workspace(const LinearShape& shape) {
  const LinearShape s = checked(shape);
  const std::int64_t outputs = std::int64_t{s.groups} * s.out;
  const std::int64_t cpu = (cpu_weight_split(s).count - 1) * outputs * (s.in + 1);
  return std::max(static_cast<std::size_t>(cpu) * sizeof(double), cuda_weight_workspace(s));
}

template void linear_forward(CpuQueue&, const LinearForward<float, float>&);
template void linear_forward(CpuQueue&, const LinearForward<double, double>&);
template void linear_backward_input(CpuQueue&, const LinearBackwardInput<float>&);
template void linear_backward_input(CpuQueue&, const LinearBackwardInput<double>&);
template void linear_backward_weight(CpuQueue&, const LinearBackwardWeight<float>&);
template void linear_backward_weight(CpuQueue&, const LinearBackwardWeight<double>&);

}  // namespace fm
