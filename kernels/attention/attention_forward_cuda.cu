// Forward for f16 and bf16. A warp owns 16 queries and holds their q, scores and sums for o in
// registers; the block's warps walk the keys together, 64 at a time through a double buffer in
// shared memory, with the running maximum and sum of the blocked softmax. Scores are kept times
// log2(e) / sqrt(hd), so that an exponential is one fma and one ex2.
#include <cmath>

#include "kernels/attention/attention.cuh"

namespace fm {
namespace attention {
namespace {

constexpr int kStage = 64;  // keys in one buffer

template <int D>
constexpr int kWarps = D <= 32 ? 5 : 4;  // at most; 16 queries each
// Blocks an SM should hold: the registers a thread may use follow.
template <int D>
constexpr int kBlocks = D == 16    ? 4
                        : D == 128 ? 2
                                   : 3;

template <int D>
constexpr std::size_t kShared = std::size_t{2} * 2 * kStage* kStride<D> * sizeof(f16);
static_assert(kShared<128> <= kPortableShared, "forward: the buffers must fit any sm_80");

template <class T, int D>
struct Queries {
  unsigned q[D / 16][4];
  float o[D / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY};  // largest scaled score so far, rows g and g + 8
  float sum[2] = {};                      // this lane's share of the sum of 2^(score - top)

  // Takes kKeys keys in; past the first `left` they do not count.
  template <int kKeys, bool kMasked>
  __device__ __forceinline__ void attend(const T* k, const T* v, float scale_log2, int left) {
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int tile = 0; tile < kKeys / 16; ++tile)
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        unsigned b[4];
        load_matrices(b, by_rows<D>(k + tile * 16 * kStride<D> + i * 16));
        multiply_add<T>(s[2 * tile], q[i], b[0], b[1]);
        multiply_add<T>(s[2 * tile + 1], q[i], b[2], b[3]);
      }
    if constexpr (kMasked) {
      const int key = threadIdx.x % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (n * 8 + key + i % 2 >= left) s[n][i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        best = fmaxf(best, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      const float now = fmaxf(top[half], row_max(best) * scale_log2);
      const float shrink = exp2_approx(top[half] - now);
      top[half] = now;
      sum[half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= shrink;
        o[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = exp2_approx(fmaf(s[n][i], scale_log2, -now));
          sum[half] += s[n][i];
        }
    }
#pragma unroll
    for (int tile = 0; tile < kKeys / 16; ++tile) {
      unsigned weights[4];
      round_to_a<T>(weights, s[2 * tile], s[2 * tile + 1]);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        unsigned b[4];
        load_matrices_transposed(b, by_columns<D>(v + tile * 16 * kStride<D> + i * 16));
        multiply_add<T>(o[2 * i], weights, b[0], b[1]);
        multiply_add<T>(o[2 * i + 1], weights, b[2], b[3]);
      }
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kWarps<D>* kWarp, kBlocks<D>)
    forward_kernel(AttentionForward<T> p, int blocks, float scale_log2) {
  extern __shared__ uint4 shared_memory[];
  T* const buffers = reinterpret_cast<T*>(shared_memory);  // 2 x {k, v} x [kStage, kStride<D>]
  constexpr int kMatrix = kStage * kStride<D>;
  const AttentionShape& s = p.shape;
  const Place at = place_of(s, blocks);
  const auto k = rows_of(p.qkv, s, at.image, at.head, kK);
  const auto v = rows_of(p.qkv, s, at.image, at.head, kV);
  const auto fetch = [&](int first) {
    T* const to = buffers + first / kStage % 2 * 2 * kMatrix;
    copy_rows<D>(to, k, first, kStage, s);
    copy_rows<D>(to + kMatrix, v, first, kStage, s);
  };
  fetch(0);

  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int query = (at.block * warps + warp) * kTile;
  Queries<T, D> rows;
  load_rows<D>(rows.q, rows_of(p.qkv, s, at.image, at.head, kQ), query, s);
  for (int first = 0; first < s.length; first += kStage) {
    wait_for_copies();
    __syncthreads();  // all copies of this buffer are there, and nobody reads the other one
    if (first + kStage < s.length) fetch(first + kStage);
    if (query >= s.length) continue;
    const T* const keys = buffers + first / kStage % 2 * 2 * kMatrix;
    const T* const values = keys + kMatrix;
    const int count = s.length - first;
    if (count >= kStage) {
      rows.template attend<kStage, false>(keys, values, scale_log2, kStage);
    } else {
      for (int key = 0; key < count; key += kTile)
        rows.template attend<kTile, true>(keys + key * kStride<D>, values + key * kStride<D>,
                                          scale_log2, count - key);
    }
  }
  if (query >= s.length) return;

  const float sum[2] = {row_sum(rows.sum[0]), row_sum(rows.sum[1])};
  const float factor[2] = {1.0f / sum[0], 1.0f / sum[1]};
  store_rows<D>(rows_of(p.o, s, at.image, at.head), rows.o, factor, query, s);
  if (!p.lse || threadIdx.x % 4 != 0) return;
  float* const lse = p.lse + stats_of(s, at.image, at.head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = query + threadIdx.x % kWarp / 4 + half * 8;
    if (row < s.length) lse[row] = (rows.top[half] + log2f(sum[half])) * kLn2;
  }
}

}  // namespace
}  // namespace attention

template <class T>
void attention_forward(CudaQueue& queue, const AttentionForward<T>& p) {
  using namespace attention;
  check_attention_shape<T>(p.shape);
  if constexpr (std::is_same_v<T, float>) {
    forward_float(queue, p);
  } else {
    with_padded_dim(p.shape.head_dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      const Split split = split_rows(p.shape.length, kTile, kWarps<D>);
      launch(queue, "attention_forward", forward_kernel<T, D>, grid_of(p.shape, split),
             split.warps * kWarp, kShared<D>, p, split.blocks,
             kLog2e / std::sqrt(static_cast<float>(p.shape.head_dim)));
    });
  }
}

template void attention_forward(CudaQueue&, const AttentionForward<float>&);
template void attention_forward(CudaQueue&, const AttentionForward<f16>&);
template void attention_forward(CudaQueue&, const AttentionForward<bf16>&);

}  // namespace fm
