// Forward for f16 and bf16. A warp owns 16 queries and holds their q, scores and sums for o in
// registers; the block's warps walk the keys, all of them in shared memory where they fit, else
// stage after stage through a double buffer. Scores are kept times log2(e) / sqrt(hd), so that an
// exponential is one fma and one ex2.
//
// The softmax is relative to a reference a row, not to the running maximum: only when a score
// passes the reference by more than kSlack (weights then near 2^kSlack, far inside f16) do the
// references of the warp's rows move up to the maxima so far and the sums shrink to match. Most
// chunks of keys so cost no reduction over lanes. The sum of a row's weights is a product with a
// column of ones: it adds the weights as rounded for o, so that they sum to one exactly.
#include <cmath>

#include "kernels/attention/attention.cuh"

namespace fm {
namespace attention {
namespace {

constexpr float kSlack = 8;

// Warps of a block at most; blocks an SM should hold, from which follow the registers a thread may
// use; keys taken at a time; keys in one of two buffers; the most keys that are kept whole, and how
// often a warp then takes 16 queries, so that one block copies them for all.
template <int D>
struct Tile {
  static constexpr int warps = 4, blocks = D == 64 ? 3 : 2, chunk = 64;
  static constexpr int stage = 64, whole = 0, rounds = 1;
};
template <>
struct Tile<16> {
  static constexpr int warps = 8, blocks = 4, chunk = 32;
  static constexpr int stage = 128, whole = 224, rounds = 2;
};
template <>
struct Tile<32> {
  static constexpr int warps = 8, blocks = 3, chunk = 32;
  static constexpr int stage = 128, whole = 224, rounds = 2;
};

// With whole keys no more warps than they have use for (7, not 8, at head_dim 16): a thread may
// then use 72 registers rather than 64, worth 3 % at 196 tokens.
template <int D, bool kWhole>
constexpr int kWarps = kWhole ? Tile<D>::whole / (Tile<D>::rounds * kTile) : Tile<D>::warps;

template <int D>
constexpr std::size_t shared_bytes(int stage, int buffers) {
  return std::size_t{2} * sizeof(f16) * kStride<D> * static_cast<std::size_t>(stage * buffers);
}
static_assert(shared_bytes<32>(Tile<32>::whole, 1) <= kPortableShared &&
                  shared_bytes<128>(Tile<128>::stage, 2) <= kPortableShared,
              "forward: the buffers must fit any sm_80");

template <class T, int D>
struct Queries {
  unsigned q[D / 16][4];
  float o[D / 8][4] = {};
  float sum[4] = {};                            // of weights, rows g and g + 8 at 0 and 2
  float reference[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8

  // `best`: the lane's largest scaled scores in rows g and g + 8.
  __device__ __forceinline__ void raise(const float (&best)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float now = fmaxf(reference[half], row_max(best[half]));
      const float shrink = exp2_approx(reference[half] - now);
      reference[half] = now;
      sum[2 * half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= shrink;
        o[n][2 * half + 1] *= shrink;
      }
    }
  }

  // Takes kKeys keys in, at by_rows(k) and by_columns(v); past the first `left` they do not count.
  template <int kKeys, bool kMasked>
  __device__ __forceinline__ void attend(unsigned k, unsigned v, float scale_log2, int left) {
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int tile = 0; tile < kKeys / 16; ++tile)
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        unsigned b[4];
        load_matrices(b, k + tile * kTileBytes<D> + i * kColumnsBytes);
        multiply_add<T>(s[2 * tile], q[i], b[0], b[1]);
        multiply_add<T>(s[2 * tile + 1], q[i], b[2], b[3]);
      }
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kMasked && n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 >= left)
          s[n][i] = -INFINITY;
        best[i / 2] = fmaxf(best[i / 2], s[n][i]);
      }
    best[0] *= scale_log2;
    best[1] *= scale_log2;
    if (__any_sync(~0u, best[0] > reference[0] + kSlack || best[1] > reference[1] + kSlack))
      raise(best);
#pragma unroll
    for (int tile = 0; tile < kKeys / 16; ++tile) {
#pragma unroll
      for (int n = 2 * tile; n < 2 * tile + 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          s[n][i] = exp2_approx(fmaf(s[n][i], scale_log2, -reference[i / 2]));
      unsigned weights[4];
      round_to_a<T>(weights, s[2 * tile], s[2 * tile + 1]);
      multiply_add<T>(sum, weights, kOnes<T>, kOnes<T>);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        unsigned b[4];
        load_matrices_transposed(b, v + tile * kTileBytes<D> + i * kColumnsBytes);
        multiply_add<T>(o[2 * i], weights, b[0], b[1]);
        multiply_add<T>(o[2 * i + 1], weights, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void store(const AttentionForward<T>& p, const Place& at,
                                        int first) const {
    const float factor[2] = {__fdividef(1.0f, sum[0]), __fdividef(1.0f, sum[2])};
    store_rows<D>(rows_of(p.o, p.shape, at.image, at.head), o, factor, first, p.shape);
    if (!p.lse || threadIdx.x % 4 != 0) return;
    float* const lse = p.lse + stats_of(p.shape, at.image, at.head);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + static_cast<int>(threadIdx.x) % kWarp / 4 + half * 8;
      if (row < p.shape.length) lse[row] = (reference[half] + __log2f(sum[2 * half])) * kLn2;
    }
  }
};

// stage: keys in a buffer, a multiple of 16. If that is all of them there is one buffer, and a warp
// may take 16 queries `rounds` times.
template <class T, int D, bool kWhole>
__global__ void __launch_bounds__(kWarps<D, kWhole>* kWarp, Tile<D>::blocks)
    forward_kernel(AttentionForward<T> p, int rounds, int stage, float scale_log2) {
  extern __shared__ uint4 shared_memory[];
  T* const shared = reinterpret_cast<T*>(shared_memory);  // buffers x {k, v} x [stage, kStride<D>]
  constexpr int kChunk = Tile<D>::chunk;
  const AttentionShape& s = p.shape;
  const Place at = place_of_block();
  const Rows<const T> q = rows_of(p.qkv, s, at.image, at.head, kQ);
  const Rows<const T> k = rows_of(p.qkv, s, at.image, at.head, kK);
  const Rows<const T> v = rows_of(p.qkv, s, at.image, at.head, kV);
  const int matrix = stage * kStride<D>;
  const auto fetch = [&](int buffer, int first) {
    copy_rows<D>(shared + buffer * 2 * matrix, k, first, stage, s);
    copy_rows<D>(shared + (buffer * 2 + 1) * matrix, v, first, stage, s);
  };
  fetch(0, 0);
  const unsigned keys = by_rows<D>(shared), values = by_columns<D>(shared + matrix);

  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  int query = (at.block * rounds * warps + warp) * kTile;
  for (int round = 0; round < rounds; ++round, query += warps * kTile) {
    Queries<T, D> rows;
    load_rows<D>(rows.q, q, query, s);
    for (int first = 0, buffer = 0; first < s.length; first += stage, buffer ^= 1) {
      if (round == 0) {
        wait_for_copies();
        __syncthreads();  // all copies of this buffer are there, and nobody reads the other one
        if (first + stage < s.length) fetch(buffer ^ 1, first + stage);
      }
      if (query >= s.length) continue;
      unsigned offset = static_cast<unsigned>(buffer * 2 * matrix * sizeof(T));
      int left = min(stage, s.length - first);
      for (; left >= kChunk; left -= kChunk, offset += kChunk / kTile * kTileBytes<D>)
        rows.template attend<kChunk, false>(keys + offset, values + offset, scale_log2, kChunk);
      for (; left > 0; left -= kTile, offset += kTileBytes<D>)
        rows.template attend<kTile, true>(keys + offset, values + offset, scale_log2, left);
    }
    if (query < s.length) rows.store(p, at, query);
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
      const float scale_log2 = kLog2e / std::sqrt(static_cast<float>(p.shape.head_dim));
      const auto run = [&](auto whole, int rounds, int stage, int buffers) {
        constexpr bool kWhole = decltype(whole)::value;
        const Split split = split_rows(p.shape.length, rounds * kTile, kWarps<D, kWhole>);
        launch(queue, "attention_forward", forward_kernel<T, D, kWhole>,
               grid_of(p.shape, split.blocks), split.warps * kWarp, shared_bytes<D>(stage, buffers),
               p, rounds, stage, scale_log2);
      };
      if constexpr (Tile<D>::whole > 0)
        if (p.shape.length <= Tile<D>::whole)
          return run(std::true_type{}, Tile<D>::rounds, ceil_div(p.shape.length, kTile) * kTile, 1);
      run(std::false_type{}, 1, Tile<D>::stage, 2);
    });
  }
}

template void attention_forward(CudaQueue&, const AttentionForward<float>&);
template void attention_forward(CudaQueue&, const AttentionForward<f16>&);
template void attention_forward(CudaQueue&, const AttentionForward<bf16>&);

}  // namespace fm
