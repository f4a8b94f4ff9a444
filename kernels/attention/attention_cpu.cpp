// The reference in double, in the order of the formulas; float goes to attention_cpu_fast.cpp.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention/attention_check.h"
#include "kernels/attention/attention_cpu_fast.h"
#include "kernels/base/parallel_for.h"

namespace fm {
namespace {

double dot(const double* a, const double* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(double* to, double factor, const double* from, int count) {
  for (int i = 0; i < count; ++i) to[i] += factor * from[i];
}

void forward_head(const AttentionForward<double>& p, int image, int head) {
  const attention::Head<const double> x(p.shape, p.qkv, image, head);
  const int length = p.shape.length, dim = p.shape.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> score(static_cast<std::size_t>(length));
  for (int i = 0; i < length; ++i) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int j = 0; j < length; ++j) {
      score[j] = scale * dot(x.q(i), x.k(j), dim);
      top = std::max(top, score[j]);
    }
    double* o = x.o_row(p.o, i);
    std::fill_n(o, dim, 0.0);
    for (int j = 0; j < length; ++j) {
      const double weight = std::exp(score[j] - top);
      sum += weight;
      add_scaled(o, weight, x.v(j), dim);
    }
    for (int d = 0; d < dim; ++d) o[d] /= sum;
    if (p.lse) p.lse[x.stat(i)] = top + std::log(sum);
  }
}

void backward_head(const AttentionBackward<double>& p, int image, int head) {
  const attention::Head<const double> x(p.shape, p.qkv, image, head);
  const attention::Head<double> dx(p.shape, p.d_qkv, image, head);
  const int length = p.shape.length, dim = p.shape.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  for (int i = 0; i < length; ++i) {
    std::fill_n(dx.q(i), dim, 0.0);
    std::fill_n(dx.k(i), dim, 0.0);
    std::fill_n(dx.v(i), dim, 0.0);
  }
  for (int i = 0; i < length; ++i) {
    const double* d_o = x.o_row(p.d_o, i);
    const double delta = dot(d_o, x.o_row(p.o, i), dim);
    for (int j = 0; j < length; ++j) {
      const double prob = std::exp(scale * dot(x.q(i), x.k(j), dim) - p.lse[x.stat(i)]);
      const double d_score = prob * (dot(d_o, x.v(j), dim) - delta);
      add_scaled(dx.q(i), scale * d_score, x.k(j), dim);
      add_scaled(dx.k(j), scale * d_score, x.q(i), dim);
      add_scaled(dx.v(j), prob, d_o, dim);
    }
  }
}

// A piece owns one head of one image, so nothing is shared.
template <class Body>
void for_each_head(CpuQueue& queue, const AttentionShape& s, Body&& body) {
  parallel_for(queue, static_cast<std::int64_t>(s.batch) * s.heads, 1,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i)
                   body(static_cast<int>(i / s.heads), static_cast<int>(i % s.heads));
               });
}

}  // namespace

// CUDA: two statistics a query in float, and room for the queries of a whole last tile of 16; the
// CPU needs none.
template <class T>
std::size_t attention_backward_workspace(const AttentionShape& s) {
  const std::size_t queries = (static_cast<std::size_t>(s.length) + 15) / 16 * 16;
  return 2 * sizeof(float) * static_cast<std::size_t>(s.batch) * static_cast<std::size_t>(s.heads) *
         queries;
}

template <class T>
void attention_forward(CpuQueue& queue, const AttentionForward<T>& p) {
  check_attention_shape<T>(p.shape);
  for_each_head(queue, p.shape, [&](int image, int head) {
    if constexpr (std::is_same_v<T, float>) attention::forward_head_fast(p, image, head);
    else forward_head(p, image, head);
  });
}

template <class T>
void attention_backward(CpuQueue& queue, const AttentionBackward<T>& p) {
  check_attention_shape<T>(p.shape);
  for_each_head(queue, p.shape, [&](int image, int head) {
    if constexpr (std::is_same_v<T, float>) attention::backward_head_fast(p, image, head);
    else backward_head(p, image, head);
  });
}

template std::size_t attention_backward_workspace<double>(const AttentionShape&);
template std::size_t attention_backward_workspace<float>(const AttentionShape&);
template std::size_t attention_backward_workspace<f16>(const AttentionShape&);
template std::size_t attention_backward_workspace<bf16>(const AttentionShape&);
template void attention_forward(CpuQueue&, const AttentionForward<float>&);
template void attention_forward(CpuQueue&, const AttentionForward<double>&);
template void attention_backward(CpuQueue&, const AttentionBackward<float>&);
template void attention_backward(CpuQueue&, const AttentionBackward<double>&);

}  // namespace fm
