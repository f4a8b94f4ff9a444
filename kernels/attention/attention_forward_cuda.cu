// Forward for f16 and bf16. A warp owns 16 queries and holds their q, scores and sums for o in
// registers; the block's warps walk the keys, all of them in shared memory where they fit, else
// stage after stage through a double buffer. Scores are kept times log2(e) / sqrt(hd), so that an
// exponential is one fma and one ex2.
//
// The softmax is relative to a reference a row, at first the maximum over 16 keys, not to the
// running maximum: only when weights sum to more than kMost, still far inside f16, do the
// references of the warp's rows move up to the maxima so far, the sums shrink to match, and the
// last keys are weighed again. So no score is compared with anything: 36 instructions for 16 x 16
// scores rather than 42. The sum of a row's weights is a product with a column of ones: it adds the
// weights as rounded for o, so that they sum to one exactly.
#include <cmath>

#include "kernels/attention/attention.cuh"

namespace fm {
namespace attention {
namespace {

constexpr float kMost = 16384;

// The most keys that are all kept in shared memory.
template <int D>
constexpr int kWholeKeys = D <= 32 ? 224 : 0;

// Of both ways: warps of a block at most; blocks an SM should hold, from which follow the registers
// a thread may use; keys taken at a time.
template <int D, bool kWhole>
struct Tile {
  static constexpr int warps = 4, blocks = D == 64 ? 3 : 2, chunk = 64;
};
template <>
struct Tile<16, true> {  // one block takes a head of 196 tokens
  static constexpr int warps = 13, blocks = 3, chunk = 32;
};
template <>
struct Tile<16, false> {
  static constexpr int warps = 8, blocks = 4, chunk = 64;
};
template <>
struct Tile<32, true> {
  static constexpr int warps = 7, blocks = 4, chunk = 32;
};
template <>
struct Tile<32, false> {
  static constexpr int warps = 8, blocks = 3, chunk = 32;
};

// Warps of a block where all keys are kept and heads leave multiprocessors idle: a scheduler each.
constexpr int kSpreadWarps = 4;

// Keys in one of two buffers where not all are kept.
template <int D>
constexpr int kStage = D <= 32 ? 128 : 64;

template <int D>
constexpr std::size_t shared_bytes(int stage, int buffers) {
  return std::size_t{2} * sizeof(f16) * kStride<D> * static_cast<std::size_t>(stage * buffers);
}
static_assert(shared_bytes<32>(kWholeKeys<32>, 1) <= kPortableShared &&
                  shared_bytes<128>(kStage<128>, 2) <= kPortableShared,
              "forward: the buffers must fit any sm_80");

template <class T, int D>
struct Queries {
  unsigned q[D / 16][4];
  float o[D / 8][4] = {};
  float sum[2] = {};   // of weights, rows g and g + 8
  float reference[2];  // of their scaled scores

  // Products with 16 keys, at by_rows(k), or the first 8; past the first `left` -inf if kMasked.
  template <int kHalves, bool kMasked>
  __device__ __forceinline__ void score(float (&s)[2][4], unsigned k, int left) const {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      unsigned b[4];
      load_matrices(b, k + i * kColumnsBytes);
#pragma unroll
      for (int n = 0; n < kHalves; ++n) multiply_add<T>(s[n], q[i], b[2 * n], b[2 * n + 1]);
    }
    if constexpr (kMasked) {
      const int key = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int i = 0; i < 4 * kHalves; ++i)
        if (i / 4 * 8 + key + i % 2 >= left) s[i / 4][i % 4] = -INFINITY;
    }
  }

  // The largest scaled scores of 8 kHalves keys.
  template <int kHalves, bool kMasked>
  __device__ __forceinline__ void find_largest(float (&largest)[2], unsigned k, float scale_log2,
                                               int left) const {
    constexpr int kTiles = ceil_div(kHalves, 2), halves = kHalves < 2 ? kHalves : 2;
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float s[2][4] = {};
      score<halves, kMasked>(s, k + tile * kTileBytes<D>, left);
#pragma unroll
      for (int i = 0; i < 4 * halves; ++i)
        best[i % 4 / 2] = fmaxf(best[i % 4 / 2], s[i / 4][i % 4]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) largest[half] = row_max(best[half]) * scale_log2;
  }

  // Moves the references up to these keys' scores where those are larger.
  template <int kHalves, bool kMasked>
  __device__ __forceinline__ void raise(unsigned k, float scale_log2, int left) {
    float largest[2];
    find_largest<kHalves, kMasked>(largest, k, scale_log2, left);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float now = fmaxf(reference[half], largest[half]);
      const float shrink = exp2_approx(reference[half] - now);
      reference[half] = now;
      sum[half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= shrink;
        o[n][2 * half + 1] *= shrink;
      }
    }
  }

  // Takes 8 kHalves keys in, at by_rows(k) and by_columns(v); past the first `left` they do not
  // count if kMasked.
  template <int kHalves, bool kMasked>
  __device__ __forceinline__ void attend(unsigned k, unsigned v, float scale_log2, int left) {
    constexpr int kTiles = ceil_div(kHalves, 2), halves = kHalves < 2 ? kHalves : 2;
    unsigned weights[kTiles][4];
    float sums[4];
    for (;;) {
      sums[0] = sums[1] = sums[2] = sums[3] = 0;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float s[2][4] = {};
        score<halves, kMasked>(s, k + tile * kTileBytes<D>, left);
#pragma unroll
        for (int i = 0; i < 4 * halves; ++i) {
          float& at = s[i / 4][i % 4];
          at = exp2_approx(fmaf(at, scale_log2, -reference[i % 4 / 2]));
        }
        round_to_a<T>(weights[tile], s[0], s[1]);
        multiply_add<T>(sums, weights[tile], kOnes<T>, kOnes<T>);
      }
      if (!__any_sync(~0u, sums[0] > kMost || sums[2] > kMost)) break;
      raise<kHalves, kMasked>(k, scale_log2, left);
    }
    sum[0] += sums[0];
    sum[1] += sums[2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        unsigned b[4];
        load_matrices_transposed(b, v + tile * kTileBytes<D> + i * kColumnsBytes);
        multiply_add<T>(o[2 * i], weights[tile], b[0], b[1]);
        multiply_add<T>(o[2 * i + 1], weights[tile], b[2], b[3]);
      }
  }

  // Takes `count` keys in, kChunk at a time. The last 8 or fewer are half a tile: of 196, 4 % less
  // work.
  template <int kChunk>
  __device__ __forceinline__ void attend_all(unsigned k, unsigned v, float scale_log2, int count) {
#pragma unroll 1
    for (; count >= kChunk; count -= kChunk) {
      attend<kChunk / 8, false>(k, v, scale_log2, kChunk);
      k += kChunk / kTile * kTileBytes<D>;
      v += kChunk / kTile * kTileBytes<D>;
    }
#pragma unroll 1
    for (; count > 8; count -= kTile) {
      attend<2, true>(k, v, scale_log2, count);
      k += kTileBytes<D>;
      v += kTileBytes<D>;
    }
    if (count > 0) attend<1, true>(k, v, scale_log2, count);
  }

  __device__ __forceinline__ void store(const AttentionForward<T>& p, const Place& at,
                                        int first) const {
    const float factor[2] = {__fdividef(1.0f, sum[0]), __fdividef(1.0f, sum[1])};
    store_rows<D>(rows_of(p.o, p.shape, at.image, at.head), o, factor, first, p.shape);
    if (!p.lse || threadIdx.x % 4 != 0) return;
    float* const lse = p.lse + stats_of(p.shape, at.image, at.head);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + static_cast<int>(threadIdx.x) % kWarp / 4 + half * 8;
      if (row < p.shape.length) lse[row] = (reference[half] + __log2f(sum[half])) * kLn2;
    }
  }
};

// stage: keys in a buffer, a multiple of 16; kWhole: all of them, and there is one buffer.
template <class T, int D, bool kWhole>
__global__ void __launch_bounds__(Tile<D, kWhole>::warps* kWarp, Tile<D, kWhole>::blocks)
    forward_kernel(Deferred<AttentionForward<T>> deferred, int stage, float scale_log2) {
  const AttentionForward<T>& p = deferred.wait();
  extern __shared__ uint4 shared_memory[];
  T* const shared = reinterpret_cast<T*>(shared_memory);  // buffers x {k, v} x [stage, kStride<D>]
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

  const int query = static_cast<int>(at.block * blockDim.x + threadIdx.x) / kWarp * kTile;
  Queries<T, D> own;
  load_rows<D>(own.q, q, query, s);
  for (int first = 0, buffer = 0; first < s.length; first += stage, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // all copies of this buffer are there, and nobody reads the other one
    if (!kWhole && first + stage < s.length) fetch(buffer ^ 1, first + stage);
    if (query >= s.length) continue;
    const unsigned offset = static_cast<unsigned>(buffer * 2 * matrix * sizeof(T));
    if (first == 0) own.template find_largest<2, true>(own.reference, keys, scale_log2, s.length);
    own.template attend_all<Tile<D, kWhole>::chunk>(keys + offset, values + offset, scale_log2,
                                                    min(stage, s.length - first));
  }
  if (query < s.length) own.store(p, at, query);
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
      const auto run = [&](auto whole, int stage, int buffers) {
        constexpr bool kWhole = decltype(whole)::value;
        const bool spread =
            kWhole && heads_of(p.shape) < static_cast<unsigned>(queue.limits.multiprocessors);
        const Split split =
            split_rows(p.shape.length, kTile, spread ? kSpreadWarps : Tile<D, kWhole>::warps);
        launch(queue, "attention_forward", forward_kernel<T, D, kWhole>,
               grid_of(p.shape, split.blocks), split.warps * kWarp, shared_bytes<D>(stage, buffers),
               p, stage, scale_log2);
      };
      if constexpr (kWholeKeys < D >> 0)
        if (p.shape.length <= kWholeKeys<D>)
          return run(std::true_type{}, ceil_div(p.shape.length, kTile) * kTile, 1);
      run(std::false_type{}, kStage<D>, 2);
    });
  }
}

template void attention_forward(CudaQueue&, const AttentionForward<float>&);
template void attention_forward(CudaQueue&, const AttentionForward<f16>&);
template void attention_forward(CudaQueue&, const AttentionForward<bf16>&);

}  // namespace fm
