// What the 16-bit backward kernels share: a warp's own rows against columns in shared memory.
//
// With X = q k^T / sqrt(hd), P = exp(X - lse), Y = d_o v^T, delta = sum of d_o o over hd:
//   dS = P (Y - delta),   dq = dS k / sqrt(hd),   dk = dS^T q / sqrt(hd),   dv = P^T d_o.
// Y starts from -delta, so that dS is one product.
#pragma once

#include "kernels/attention/attention.cuh"

namespace fm::attention {

// Statistics of 16 queries, as they lie in memory: -lse log2(e) of 2t, 2t + 1, 2t + 8 and 2t + 9
// for each t, then -delta likewise. A lane that has these columns of two products reads two
// vectors.
constexpr int kTileStats = 2 * kTile;
__device__ __forceinline__ void put_stats(float* stats, int query, float minus_lse,
                                          float minus_delta) {
  const int column = query % kTile;
  float* const to =
      stats + query / kTile * kTileStats + column % 8 / 2 * 4 + column / 8 * 2 + column % 2;
  to[0] = minus_lse;
  to[kTile] = minus_delta;
}

// 16 columns: two matrices, their addresses by_rows and by_columns, and if they are queries this
// lane's statistics. In the names, 1 belongs to the product X and 2 to Y.
template <int D>
struct Columns {
  unsigned rows1, columns1, rows2, columns2;
  const float4* stats;

  __device__ __forceinline__ void advance(int tiles) {
    const unsigned bytes = static_cast<unsigned>(tiles) * kTileBytes<D>;
    rows1 += bytes;
    columns1 += bytes;
    rows2 += bytes;
    columns2 += bytes;
    stats += tiles * (kTileStats / 4);
  }
};
template <int D, class T>
__device__ __forceinline__ Columns<D> columns_at(const T* matrix1, const T* matrix2,
                                                 const float* stats) {
  return {by_rows<D>(matrix1), by_columns<D>(matrix1), by_rows<D>(matrix2), by_columns<D>(matrix2),
          reinterpret_cast<const float4*>(stats) + threadIdx.x % 4};
}

// kCount times 16 rows; kKeys: they are keys and columns queries, else the other way round.
template <class T, int D, int kCount, bool kKeys>
struct OwnRows {
  // Whether the rows stay in registers: at 128 they would leave none for the sums.
  static constexpr bool held = D <= 64;
  // Whether the columns' second form is read before it is needed, where the registers allow it.
  static constexpr bool early = D == 16;
  unsigned rows1[held ? kCount : 1][D / 16][4], rows2[held ? kCount : 1][D / 16][4];
  unsigned shared1, shared2;                                     // by_columns of them when not held
  float sum1[kCount][D / 8][4] = {};                             // dq or dk, before the scale
  float sum2[kKeys ? kCount : 1][D / 8][4] = {};                 // dv
  float minus_lse[kCount][2] = {}, minus_delta[kCount][2] = {};  // of queries, rows g and g + 8

  // Takes 16 kTiles columns in. kMasked: past the first `left` they do not count; a query past the
  // end need not be masked, as its statistics, q and d_o of zero give a P of 1 that adds nothing,
  // but a key has a score of 0, whose P may be infinite. `keep` gets dS of each tile as an A.
  template <int kTiles, bool kMasked, class Keep>
  __device__ __forceinline__ void add(const Columns<D>& of, float scale_log2, int left,
                                      Keep&& keep) {
    static_assert(held || kCount == 1);
    unsigned columns1[kTiles][D / 16][4], columns2[kTiles][D / 16][4];
    const auto load_columns = [&](int tile) {
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        const unsigned offset = tile * kTileBytes<D> + i * kColumnsBytes;
        load_matrices_transposed(columns1[tile][i], of.columns1 + offset);
        if constexpr (kKeys) load_matrices_transposed(columns2[tile][i], of.columns2 + offset);
      }
    };
    float x[kCount][2 * kTiles][4] = {}, y[kCount][2 * kTiles][4];
    float4 lse[kKeys ? kTiles : 1];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float4 delta;
      if constexpr (kKeys) {
        lse[tile] = of.stats[tile * (kTileStats / 4)];
        delta = of.stats[tile * (kTileStats / 4) + kTile / 4];
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          y[j][2 * tile][i] = kKeys ? (i % 2 ? delta.y : delta.x) : minus_delta[j][i / 2];
          y[j][2 * tile + 1][i] = kKeys ? (i % 2 ? delta.w : delta.z) : minus_delta[j][i / 2];
        }
    }
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      if constexpr (!held) {
        load_matrices(rows1[0][i], shared1 + i * kColumnsBytes);
        load_matrices(rows2[0][i], shared2 + i * kColumnsBytes);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const unsigned offset = tile * kTileBytes<D> + i * kColumnsBytes;
        unsigned b[4];
        load_matrices(b, of.rows1 + offset);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          multiply_add<T>(x[j][2 * tile], rows1[j][i], b[0], b[1]);
          multiply_add<T>(x[j][2 * tile + 1], rows1[j][i], b[2], b[3]);
        }
        load_matrices(b, of.rows2 + offset);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          multiply_add<T>(y[j][2 * tile], rows2[j][i], b[0], b[1]);
          multiply_add<T>(y[j][2 * tile + 1], rows2[j][i], b[2], b[3]);
        }
      }
    }
    if constexpr (early)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) load_columns(tile);
    // x becomes P and y dS.
    const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      unsigned d_score[kCount][4], prob[kCount][4];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& at = x[j][2 * tile + n][i];
            float bias = minus_lse[j][i / 2];
            if constexpr (kKeys)
              bias = n == 0 ? (i % 2 ? lse[tile].y : lse[tile].x)
                            : (i % 2 ? lse[tile].w : lse[tile].z);
            at = exp2_approx(fmaf(at, scale_log2, bias));
            if (kMasked && tile * kTile + n * 8 + pair + i % 2 >= left) at = 0.0f;
            y[j][2 * tile + n][i] *= at;
          }
        round_to_a<T>(d_score[j], y[j][2 * tile], y[j][2 * tile + 1]);
        if constexpr (kKeys) round_to_a<T>(prob[j], x[j][2 * tile], x[j][2 * tile + 1]);
        keep(j, tile, d_score[j]);
      }
      if constexpr (!early) load_columns(tile);
#pragma unroll
      for (int i = 0; i < D / 16; ++i)
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const unsigned(&b)[4] = columns1[tile][i], (&c)[4] = columns2[tile][i];
          multiply_add<T>(sum1[j][2 * i], d_score[j], b[0], b[1]);
          multiply_add<T>(sum1[j][2 * i + 1], d_score[j], b[2], b[3]);
          if constexpr (kKeys) {
            multiply_add<T>(sum2[j][2 * i], prob[j], c[0], c[1]);
            multiply_add<T>(sum2[j][2 * i + 1], prob[j], c[2], c[3]);
          }
        }
    }
  }

  // Writes what has been summed, for rows from `first` on.
  __device__ __forceinline__ void store(const AttentionBackward<T>& p, const Place& at, int first,
                                        float scale) const {
    const AttentionShape& s = p.shape;
    const float scales[2] = {scale, scale}, ones[2] = {1, 1};
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int row = first + j * kTile;
      store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kKeys ? kK : kQ), sum1[j], scales, row,
                    s);
      if constexpr (kKeys)
        store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kV), sum2[j], ones, row, s);
    }
  }
};

}  // namespace fm::attention
