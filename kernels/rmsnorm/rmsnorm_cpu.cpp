#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;
constexpr std::int64_t kColumnGrain = 256;  // columns of the workspace summed by one call

template <class T>
inline void forward_rows(const RmsNormForward<T>& p, std::int64_t begin, std::int64_t end) {
  const RmsNormShape& shape = p.shape;
  for (std::int64_t item = begin * shape.groups; item < end * shape.groups; ++item) {
    for (int s = 0; s < shape.segments; ++s) {
      const int n = shape.segment_width[s];
      const std::int64_t at = item * shape.width + shape.begin[s];
      const T* x = p.x + at;
      const T* w = p.weight[s] + item % shape.groups * n;
      T* y = p.y + at;
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int i = 0; i < n; ++i) squares += x[i] * x[i];
      const T r = 1 / std::sqrt(squares / n + static_cast<T>(shape.eps));
#pragma omp simd
      for (int i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
    }
  }
}

// Writes dx of rows [begin, end) and their share of the weight gradients, `partial` [weights()].
template <class T>
inline void backward_rows(const RmsNormBackward<T>& p, std::int64_t begin, std::int64_t end,
                          T* partial) {
  const RmsNormShape& shape = p.shape;
  std::fill_n(partial, shape.weights(), T(0));
  for (std::int64_t item = begin * shape.groups; item < end * shape.groups; ++item) {
    T* dweight = partial;
    for (int s = 0; s < shape.segments; ++s) {
      const int n = shape.segment_width[s];
      const std::int64_t at = item * shape.width + shape.begin[s];
      const std::int64_t group_at = item % shape.groups * n;
      const T* x = p.x + at;
      const T* dy = p.dy + at;
      const T* w = p.weight[s] + group_at;
      T* dx = p.dx + at;
      T* dw = dweight + group_at;
      T squares = 0, product = 0;
#pragma omp simd reduction(+ : squares, product)
      for (int i = 0; i < n; ++i) {
        squares += x[i] * x[i];
        product += w[i] * dy[i] * x[i];
      }
      const T r = 1 / std::sqrt(squares / n + static_cast<T>(shape.eps));
      const T mean = product * r / n;  // of w dy xh
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T xh = x[i] * r, g = dy[i];
        dw[i] += g * xh;
        dx[i] = r * (w[i] * g - xh * mean);
      }
      dweight += shape.weights(s);
    }
  }
}

FM_SIMD void forward_rows_simd(const RmsNormForward<float>& p, std::int64_t begin,
                               std::int64_t end) {
  forward_rows(p, begin, end);
}
FM_SIMD void backward_rows_simd(const RmsNormBackward<float>& p, std::int64_t begin,
                                std::int64_t end, float* partial) {
  backward_rows(p, begin, end, partial);
}

// Second stage: sums columns [begin, end) of the pieces' partial rows.
template <class T>
void sum_partials(const RmsNormBackward<T>& p, const T* partials, std::int64_t begin,
                  std::int64_t end) {
  const std::int64_t columns = p.shape.weights(), pieces = rmsnorm_pieces(p.shape.rows);
  T sums[kColumnGrain] = {};
  for (std::int64_t piece = 0; piece < pieces; ++piece)
    for (std::int64_t i = begin; i < end; ++i) sums[i - begin] += partials[piece * columns + i];
  std::int64_t first = 0;  // column of the segment's first weight
  for (int s = 0; s < p.shape.segments; ++s) {
    const std::int64_t last = first + p.shape.weights(s);
    for (std::int64_t i = std::max(begin, first); i < std::min(end, last); ++i)
      p.dweight[s][i - first] = sums[i - begin];
    first = last;
  }
}

}  // namespace

void rmsnorm_check(const RmsNormShape& s) {
  FM_CHECK(s.rows > 0 && s.groups > 0 && s.width > 0,
           "[rmsnorm] rows, groups and width must be positive, got ", s.rows, ", ", s.groups, ", ",
           s.width);
  FM_CHECK(s.segments >= 1 && s.segments <= kRmsNormMaxSegments, "[rmsnorm] segments must be 1 to ",
           kRmsNormMaxSegments, ", got ", s.segments);
  FM_CHECK(s.eps > 0, "[rmsnorm] eps must be positive, got ", s.eps);
  for (int i = 0; i < s.segments; ++i) {
    const int begin = s.begin[i], end = begin + s.segment_width[i];
    FM_CHECK(begin >= 0 && begin < end && end <= s.width,
             "[rmsnorm] a segment must have columns and end within the row's ", s.width,
             ", got columns ", begin, " to ", end);
    for (int j = 0; j < i; ++j)
      FM_CHECK(begin >= s.begin[j] + s.segment_width[j] || end <= s.begin[j],
               "[rmsnorm] segments must not overlap, got columns ", begin, " to ", end,
               " beside a segment from ", s.begin[j], " to ", s.begin[j] + s.segment_width[j]);
  }
}

template <class T>
std::size_t rmsnorm_backward_workspace(const RmsNormShape& s) {
  return static_cast<std::size_t>(rmsnorm_pieces(s.rows) * s.weights()) * sizeof(acc_t<T>);
}

template <class T>
void rmsnorm_forward(CpuQueue& queue, const RmsNormForward<T>& p) {
  rmsnorm_check(p.shape);
  parallel_for(queue, p.shape.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<T, float>) forward_rows_simd(p, begin, end);
    else forward_rows(p, begin, end);
  });
}

template <class T>
void rmsnorm_backward(CpuQueue& queue, const RmsNormBackward<T>& p) {
  rmsnorm_check(p.shape);
  T* partials = static_cast<T*>(p.workspace);
  const std::int64_t columns = p.shape.weights();
  const std::int64_t rows = rmsnorm_rows_per_piece(p.shape.rows);
  parallel_for(queue, p.shape.rows, rows, [&](std::int64_t begin, std::int64_t end) {
    T* partial = partials + begin / rows * columns;
    if constexpr (std::is_same_v<T, float>) backward_rows_simd(p, begin, end, partial);
    else backward_rows(p, begin, end, partial);
  });
  parallel_for(queue, columns, kColumnGrain, [&](std::int64_t begin, std::int64_t end) {
    sum_partials(p, partials, begin, end);
  });
}

template std::size_t rmsnorm_backward_workspace<double>(const RmsNormShape&);
template std::size_t rmsnorm_backward_workspace<float>(const RmsNormShape&);
template std::size_t rmsnorm_backward_workspace<f16>(const RmsNormShape&);
template std::size_t rmsnorm_backward_workspace<bf16>(const RmsNormShape&);
template void rmsnorm_forward(CpuQueue&, const RmsNormForward<float>&);
template void rmsnorm_forward(CpuQueue&, const RmsNormForward<double>&);
template void rmsnorm_backward(CpuQueue&, const RmsNormBackward<float>&);
template void rmsnorm_backward(CpuQueue&, const RmsNormBackward<double>&);

}  // namespace fm
