// Backward for f16 and bf16 where a head's dS fits into shared memory: one block a head, so that P
// is computed once and nothing is summed outside the block.
//
// First a warp owns keys and walks the queries, 16 at a time: P and dS come out transposed (keys
// are rows), at once the A of dv = P^T d_o and dk = dS^T q, whose sums stay in registers. dS is
// rounded and left in shared memory. After one barrier a warp owns queries: dq = dS k.
// Of head_dim 16 a warp owns 32 rows, which share what is read of the other side: with 16, shared
// memory's bandwidth would bind (8 reads of 512 bytes a pair of tiles rather than 5).
#include <cmath>

#include "kernels/attention/attention_backward.cuh"

namespace fm::attention {
namespace {

// Warps of a block at most; times 16 rows of a warp; blocks an SM should hold (at head_dim 16 and
// 208 tokens two have the shared memory), from which follow the registers a thread may use.
template <int D>
struct Tile {
  static constexpr int warps = 16, count = 1, blocks = 1;
};
template <>
struct Tile<16> {
  static constexpr int warps = 8, count = 2, blocks = 2;
};

// q, d_o, k and v by rows; dS as one matrix of 16 queries' columns after the other, a row a key;
// statistics.
template <class T, int D>
struct Shared {
  T *q, *d_o, *k, *v, *d_scores;
  float* stats;

  __device__ Shared(void* memory, int rows)
      : q(static_cast<T*>(memory)),
        d_o(q + rows * kStride<D>),
        k(d_o + rows * kStride<D>),
        v(k + rows * kStride<D>),
        d_scores(v + rows * kStride<D>),
        stats(reinterpret_cast<float*>(d_scores + rows * rows)) {}
  static std::size_t bytes(int rows) {
    const std::size_t n = static_cast<std::size_t>(rows);
    return n * ((4 * kStride<D> + n) * sizeof(T) + kTileStats / kTile * sizeof(float));
  }
};

// Those of all queries; zeros past the end. A thread takes a whole row, so that all its loads are
// under way together.
template <int D, class T>
__device__ __forceinline__ void find_stats(const AttentionBackward<T>& p, const Place& at, int rows,
                                           float* stats) {
  const Rows<const T> o = rows_of(p.o, p.shape, at.image, at.head);
  const Rows<const T> d_o = rows_of(p.d_o, p.shape, at.image, at.head);
  const float* const lse = p.lse + stats_of(p.shape, at.image, at.head);
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    float minus_lse = 0, delta = 0;
    if (row < p.shape.length) {
      uint4 a[D / 8] = {}, b[D / 8] = {};
#pragma unroll
      for (int i = 0; i < D / 8; ++i)
        if (i * 8 < p.shape.head_dim) {
          a[i] = *reinterpret_cast<const uint4*>(o[row] + i * 8);
          b[i] = *reinterpret_cast<const uint4*>(d_o[row] + i * 8);
        }
      minus_lse = lse[row] * -kLog2e;
#pragma unroll
      for (int i = 0; i < D / 8; ++i)
        delta += (dot<T>(a[i].x, b[i].x) + dot<T>(a[i].y, b[i].y)) +
                 (dot<T>(a[i].z, b[i].z) + dot<T>(a[i].w, b[i].w));
    }
    put_stats(stats, row, minus_lse, -delta);
  }
}

// kCount times 16 keys from `key` on: dk, dv and their dS.
template <int kCount, class T, int D>
__device__ __forceinline__ void walk_queries(const AttentionBackward<T>& p, const Place& at,
                                             const Shared<T, D>& shared, int key, int rows,
                                             float scale) {
  OwnRows<T, D, kCount, true> own;
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      const int tile = (key + j * kTile) * kStride<D> + i * 16;
      load_matrices(own.rows1[j][i], by_columns<D>(shared.k + tile));
      load_matrices(own.rows2[j][i], by_columns<D>(shared.v + tile));
    }
  Columns<D> columns = columns_at<D>(shared.q, shared.d_o, shared.stats);
  unsigned d_scores = by_columns<16>(shared.d_scores + key * kStride<16>);
  const auto keep = [&](int j, int, const unsigned(&tile)[4]) {
    store_matrices(d_scores + j * kTileBytes<16>, tile);
  };
#pragma unroll 1
  for (int query = 0; query < rows; query += kTile) {
    own.template add<1, false>(columns, scale * kLog2e, kTile, keep);
    columns.advance(1);
    d_scores += rows * kStride<16> * sizeof(T);
  }
  own.store(p, at, key, scale);
}

// kCount times 16 queries from `query` on: dq.
template <int kCount, class T, int D>
__device__ __forceinline__ void walk_keys(const AttentionBackward<T>& p, const Place& at,
                                          const Shared<T, D>& shared, int query, int rows,
                                          float scale) {
  const AttentionShape& s = p.shape;
  float dq[kCount][D / 8][4] = {};
  unsigned k_columns = by_columns<D>(shared.k);
  unsigned d_scores = by_rows<16>(shared.d_scores + query * rows);
  for (int key = 0; key < rows; key += kTile) {
    unsigned a[kCount][4];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      load_matrices_transposed(a[j], d_scores + j * rows * kStride<16> * sizeof(T));
      // A key past the end has a score of 0, whose P may be infinite.
      if (key + kTile > s.length) keep_columns(a[j], s.length - key);
    }
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      unsigned b[4];
      load_matrices_transposed(b, k_columns + i * kColumnsBytes);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        multiply_add<T>(dq[j][2 * i], a[j], b[0], b[1]);
        multiply_add<T>(dq[j][2 * i + 1], a[j], b[2], b[3]);
      }
    }
    k_columns += kTileBytes<D>;
    d_scores += kTileBytes<16>;
  }
  const float scales[2] = {scale, scale};
#pragma unroll
  for (int j = 0; j < kCount; ++j)
    store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kQ), dq[j], scales, query + j * kTile, s);
}

// rows: the length up to a multiple of 16.
template <class T, int D>
__global__ void __launch_bounds__(Tile<D>::warps* kWarp, Tile<D>::blocks)
    backward_head_kernel(AttentionBackward<T> p, int rows, float scale) {
  extern __shared__ uint4 shared_memory[];
  const Shared<T, D> shared(shared_memory, rows);
  const AttentionShape& s = p.shape;
  const Place at = place_of_block();
  copy_rows<D>(shared.q, rows_of(p.qkv, s, at.image, at.head, kQ), 0, rows, s);
  copy_rows<D>(shared.d_o, rows_of(p.d_o, s, at.image, at.head), 0, rows, s);
  copy_rows<D>(shared.k, rows_of(p.qkv, s, at.image, at.head, kK), 0, rows, s);
  copy_rows<D>(shared.v, rows_of(p.qkv, s, at.image, at.head, kV), 0, rows, s);
  find_stats<D>(p, at, rows, shared.stats);
  wait_for_copies();
  __syncthreads();

  constexpr int kCount = Tile<D>::count, kOwn = kCount * kTile;
  const int own = static_cast<int>(threadIdx.x) / kWarp * kOwn;
  const int step = static_cast<int>(blockDim.x) / kWarp * kOwn;
  for (int key = own; key < rows; key += step)
    if (key + kOwn <= rows) walk_queries<kCount>(p, at, shared, key, rows, scale);
    else walk_queries<1>(p, at, shared, key, rows, scale);
  __syncthreads();  // all of dS is there
  for (int query = own; query < rows; query += step)
    if (query + kOwn <= rows) walk_keys<kCount>(p, at, shared, query, rows, scale);
    else walk_keys<1>(p, at, shared, query, rows, scale);
}

}  // namespace

template <class T>
bool backward_head(CudaQueue& queue, const AttentionBackward<T>& p) {
  const auto run = [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    const int rows = ceil_div(p.shape.length, kTile) * kTile;
    const std::size_t bytes = Shared<T, D>::bytes(rows);
    if (bytes > queue.limits.shared_bytes_per_block) return false;
    const int warps = split_rows(rows, Tile<D>::count * kTile, Tile<D>::warps).warps;
    launch(queue, "attention_backward", backward_head_kernel<T, D>, grid_of(p.shape, 1),
           warps * kWarp, bytes, p, rows, 1.0f / std::sqrt(static_cast<float>(p.shape.head_dim)));
    return true;
  };
  if (p.shape.length > 1024) return false;  // no block has so much, nor an int rows * rows
  if (p.shape.head_dim <= 16) return run(std::integral_constant<int, 16>{});
  if (p.shape.head_dim <= 32) return run(std::integral_constant<int, 32>{});
  return false;
}

template bool backward_head(CudaQueue&, const AttentionBackward<f16>&);
template bool backward_head(CudaQueue&, const AttentionBackward<bf16>&);

}  // namespace fm::attention
