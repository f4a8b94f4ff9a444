// The float path. A head's k and v are transposed once to [hd, L]; everything after runs along
// the keys, contiguous whatever head_dim is. Eight dimensions are worked at a time (head_dim is a
// multiple of 8): a product with a column then loads and stores the sum once for eight
// multiply-adds, and a sum over keys has eight independent chains.
#include "kernels/attention/attention_cpu_fast.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/fast_math.h"
#include "kernels/base/simd.h"

namespace fm::attention {
namespace {

constexpr int kDims = 8;
constexpr int kQueries = 4;  // backward: a sum over queries is loaded and stored once for four

// out[j] = sum over d of x[d] columns[d][j].
inline void times_columns(const float* x, const float* columns, int dim, std::int64_t length,
                          float* __restrict out) {
  for (std::int64_t j = 0; j < length; ++j) out[j] = 0;
  for (int d = 0; d < dim; d += kDims, x += kDims, columns += kDims * length) {
    const float* c = columns;
    const float x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    const float x4 = x[4], x5 = x[5], x6 = x[6], x7 = x[7];
#pragma omp simd
    for (std::int64_t j = 0; j < length; ++j)
      out[j] +=
          ((x0 * c[j] + x1 * c[length + j]) + (x2 * c[2 * length + j] + x3 * c[3 * length + j])) +
          ((x4 * c[4 * length + j] + x5 * c[5 * length + j]) +
           (x6 * c[6 * length + j] + x7 * c[7 * length + j]));
  }
}

// out[d] = factor times the sum over j of x[j] columns[d][j].
inline void times_rows(const float* x, const float* columns, int dim, std::int64_t length,
                       float factor, float* out) {
  for (int d = 0; d < dim; d += kDims, out += kDims, columns += kDims * length) {
    const float* c = columns;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4, s5, s6, s7)
    for (std::int64_t j = 0; j < length; ++j) {
      const float at = x[j];
      s0 += at * c[j];
      s1 += at * c[length + j];
      s2 += at * c[2 * length + j];
      s3 += at * c[3 * length + j];
      s4 += at * c[4 * length + j];
      s5 += at * c[5 * length + j];
      s6 += at * c[6 * length + j];
      s7 += at * c[7 * length + j];
    }
    const float sums[kDims] = {s0, s1, s2, s3, s4, s5, s6, s7};
    for (int i = 0; i < kDims; ++i) out[i] = factor * sums[i];
  }
}

// sums[d][j] += the sum over the block's queries r of x[r][d] weights[r][j].
inline void add_products(const float* const (&x)[kQueries], const float* weights, int dim,
                         std::int64_t length, float* sums) {
  const float *w0 = weights, *w1 = w0 + length, *w2 = w1 + length, *w3 = w2 + length;
  for (int d = 0; d < dim; ++d, sums += length) {
    const float x0 = x[0][d], x1 = x[1][d], x2 = x[2][d], x3 = x[3][d];
#pragma omp simd
    for (std::int64_t j = 0; j < length; ++j)
      sums[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j];
  }
}

inline float dot(const float* a, const float* b, int count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

inline void transpose_keys(const Head<const float>& x, int dim, std::int64_t length, float* k,
                           float* v) {
  for (int d = 0; d < dim; ++d)
    for (int j = 0; j < length; ++j) {
      k[d * length + j] = x.k(j)[d];
      v[d * length + j] = x.v(j)[d];
    }
}

// scratch: k, v [hd, L] and a row of scores [L].
FM_SIMD void forward_rows(const AttentionForward<float>& p, const Head<const float>& x,
                          float* scratch) {
  const int dim = p.shape.head_dim;
  const std::int64_t length = p.shape.length;
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  float *k = scratch, *v = k + dim * length, *score = v + dim * length;
  transpose_keys(x, dim, length, k, v);
  for (int i = 0; i < length; ++i) {
    times_columns(x.q(i), k, dim, length, score);
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (std::int64_t j = 0; j < length; ++j) top = score[j] > top ? score[j] : top;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < length; ++j) {
      score[j] = fast_exp(scale * (score[j] - top));
      sum += score[j];
    }
    times_rows(score, v, dim, length, 1 / sum, x.o_row(p.o, i));
    if (p.lse) p.lse[x.stat(i)] = scale * top + std::log(sum);
  }
}

// scratch: k, v and the sums for their gradients [hd, L], probabilities and gradients of the
// scores of a block of queries [kQueries, L].
FM_SIMD void backward_rows(const AttentionBackward<float>& p, const Head<const float>& x,
                           const Head<float>& dx, float* scratch) {
  const int dim = p.shape.head_dim;
  const std::int64_t length = p.shape.length;
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  float *k = scratch, *v = k + dim * length, *dk = v + dim * length, *dv = dk + dim * length;
  float *probs = dv + dim * length, *d_scores = probs + kQueries * length;
  transpose_keys(x, dim, length, k, v);
  for (std::int64_t i = 0; i < 2 * dim * length; ++i) dk[i] = 0;

  for (int first = 0; first < length; first += kQueries) {
    const float *q[kQueries], *d_o[kQueries];
    for (int r = 0; r < kQueries; ++r) {
      float *prob = probs + r * length, *d_score = d_scores + r * length;
      const bool past = first + r >= length;
      const int i = past ? first : first + r;
      q[r] = x.q(i);
      d_o[r] = x.o_row(p.d_o, i);
      if (past) {  // weights of 0: the last block's missing queries add nothing
        for (std::int64_t j = 0; j < length; ++j) prob[j] = d_score[j] = 0;
        continue;
      }
      const float lse = p.lse[x.stat(i)], delta = dot(d_o[r], x.o_row(p.o, i), dim);
      times_columns(q[r], k, dim, length, prob);
      times_columns(d_o[r], v, dim, length, d_score);
#pragma omp simd
      for (std::int64_t j = 0; j < length; ++j) {
        prob[j] = fast_exp(scale * prob[j] - lse);
        d_score[j] = prob[j] * (d_score[j] - delta);
      }
      times_rows(d_score, k, dim, length, scale, dx.q(i));
    }
    add_products(q, d_scores, dim, length, dk);
    add_products(d_o, probs, dim, length, dv);
  }
  for (int j = 0; j < length; ++j)
    for (int d = 0; d < dim; ++d) {
      dx.k(j)[d] = scale * dk[d * length + j];
      dx.v(j)[d] = dv[d * length + j];
    }
}

}  // namespace

void forward_head_fast(const AttentionForward<float>& p, int image, int head) {
  const std::size_t length = static_cast<std::size_t>(p.shape.length);
  std::vector<float> scratch((2 * static_cast<std::size_t>(p.shape.head_dim) + 1) * length);
  forward_rows(p, Head<const float>(p.shape, p.qkv, image, head), scratch.data());
}

void backward_head_fast(const AttentionBackward<float>& p, int image, int head) {
  const std::size_t length = static_cast<std::size_t>(p.shape.length);
  std::vector<float> scratch((4 * static_cast<std::size_t>(p.shape.head_dim) + 2 * kQueries) *
                             length);
  backward_rows(p, Head<const float>(p.shape, p.qkv, image, head),
                Head<float>(p.shape, p.d_qkv, image, head), scratch.data());
}

}  // namespace fm::attention
