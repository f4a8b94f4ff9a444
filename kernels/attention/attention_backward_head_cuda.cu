// Backward for f16 and bf16 where a head fits into shared memory: a block works a whole head, so
// that P is computed once and nothing is summed outside the block.
//
// A warp owns keys and walks the queries: P and dS come out transposed (keys are rows), at once the
// A of dv = P^T d_o and dk = dS^T q, whose sums stay in registers. dS is rounded and left in shared
// memory, for as many queries as there is room; after a barrier a warp takes 16 of these queries:
// dq = dS k. Of head_dim 16 a warp owns 32 keys, which share what is read of the queries: with 16,
// shared memory's bandwidth would bind (8 reads of 512 bytes a pair of tiles rather than 5).
//
// As many blocks as are resident at once go from head to head, and one warp more than there are
// owners copies the next one while they work. It spares them the copies' issue, which takes long:
// every 32 bytes are in another cache line. With copies by all warps through the L1 cache, which
// beside so much shared memory holds few lines, the kernel took 37 % longer at 196 tokens; with
// copies by all warps past it, 6 %.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention_backward.cuh"

namespace fm::attention {
namespace {

// Warps of a block that own keys at most; times 16 keys of a warp; blocks an SM should hold, from
// which follow the registers a thread may use; times 16 queries whose dS is kept at most.
template <int D>
struct Tile {
  static constexpr int warps = 15, count = 1, group = 7;
  static constexpr unsigned blocks = 1;
};
template <>
struct Tile<16> {  // 196 tokens need 108 KB: two blocks an SM
  static constexpr int warps = 7, count = 2, group = 7;
  static constexpr unsigned blocks = 2;
};

// The matrices of two heads by rows; o and lse of the next, until its statistics are there; dS as
// one matrix of 16 queries' columns after the other, a row a key.
template <class T, int D>
struct Shared {
  T *matrices, *o, *d_scores;
  float *lse, *stats;

  __device__ Shared(void* memory, int rows, int group)
      : matrices(static_cast<T*>(memory)),
        o(matrices + 8 * rows * kStride<D>),
        d_scores(o + rows * kStride<D>),
        lse(reinterpret_cast<float*>(d_scores + group * kTile * rows)),
        stats(lse + rows) {}
  static std::size_t bytes(int rows, int group) {
    const std::size_t row =
        (9 * kStride<D> + group * kTile) * sizeof(T) + (1 + kTileStats / kTile) * sizeof(float);
    return static_cast<std::size_t>(rows) * row;
  }
};

// Statistics of all queries; zeros past the end.
template <int D, class T>
__device__ __forceinline__ void find_stats(const Shared<T, D>& shared, const T* d_o, int rows) {
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    float delta = 0;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const int place = place_in_shared<D>(row, i);
      const uint4 a = *reinterpret_cast<const uint4*>(shared.o + place);
      const uint4 b = *reinterpret_cast<const uint4*>(d_o + place);
      delta += (dot<T>(a.x, b.x) + dot<T>(a.y, b.y)) + (dot<T>(a.z, b.z) + dot<T>(a.w, b.w));
    }
    put_stats(shared.stats, row, shared.lse[row] * -kLog2e, -delta);
  }
}

// dq of 16 queries; d_scores: of all keys and these queries. Two sums, so that products wait less
// for each other.
template <int D, class T>
__device__ __forceinline__ void walk_keys(const AttentionBackward<T>& p, const Place& at,
                                          const T* k, const T* d_scores, int query, int rows,
                                          float scale) {
  const AttentionShape& s = p.shape;
  float dq[2][D / 8][4] = {};
  unsigned columns = by_columns<D>(k), scores = by_rows<16>(d_scores);
  const auto add = [&](int part, int left) {
    unsigned a[4];
    load_matrices_transposed(a, scores);
    if (left < kTile) keep_columns(a, left);  // a key past the end has a score of 0: P may be inf
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      unsigned b[4];
      load_matrices_transposed(b, columns + i * kColumnsBytes);
      multiply_add<T>(dq[part][2 * i], a, b[0], b[1]);
      multiply_add<T>(dq[part][2 * i + 1], a, b[2], b[3]);
    }
    columns += kTileBytes<D>;
    scores += kTileBytes<16>;
  };
  int key = kTile;
#pragma unroll 2
  for (; key + kTile < rows; key += 2 * kTile) {
    add(0, kTile);
    add(1, kTile);
  }
  if (key < rows) add(0, kTile);
  add(1, s.length - rows + kTile);
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) dq[0][n][i] += dq[1][n][i];
  const float scales[2] = {scale, scale};
  store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kQ), dq[0], scales, query, s);
}

// rows: the length up to a multiple of 16. The last warp only copies.
template <class T, int D>
__global__ void __launch_bounds__((Tile<D>::warps + 1) * kWarp, Tile<D>::blocks)
    backward_head_kernel(Deferred<AttentionBackward<T>> deferred, int rows, int group,
                         float scale) {
  const AttentionBackward<T>& p = deferred.wait();
  extern __shared__ uint4 shared_memory[];
  constexpr int kCount = Tile<D>::count;
  const Shared<T, D> shared(shared_memory, rows, group);
  const AttentionShape& s = p.shape;
  const int matrix = rows * kStride<D>;
  const auto fetch = [&](const Place& at, int buffer) {  // by one warp
    constexpr int chunks = D / 8;
    constexpr int step = kWarp / chunks;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, chunk = lane % chunks;
    int row = lane / chunks;
    const std::int64_t width = static_cast<std::int64_t>(s.heads) * s.head_dim;
    const std::int64_t token = static_cast<std::int64_t>(at.image) * s.length + row;
    const int column = at.head * s.head_dim + chunk * 8;
    const T* in = p.qkv + token * 3 * width + column;
    std::int64_t out = token * width + column;
    const int there = chunk * 8 < s.head_dim ? s.length : 0;
    const unsigned bytes = static_cast<unsigned>(matrix * sizeof(T));
    const int place = place_in_shared<D>(row, chunk);
    unsigned to = shared_address(shared.matrices + buffer * 4 * matrix + place);
    unsigned to_o = shared_address(shared.o + place);
#pragma unroll 1
    for (; row < rows; row += step) {
      copy_async<16>(to, in, row < there);
      copy_async<16>(to + bytes, p.d_o + out, row < there);
      copy_async<16>(to + 2 * bytes, in + width, row < there);
      copy_async<16>(to + 3 * bytes, in + 2 * width, row < there);
      copy_async<16>(to_o, p.o + out, row < there);
      in += step * 3 * width;
      out += step * width;
      to += static_cast<unsigned>(step * kStride<D> * sizeof(T));
      to_o += static_cast<unsigned>(step * kStride<D> * sizeof(T));
    }
    const float* const lse = p.lse + stats_of(s, at.image, at.head);
    for (int i = lane; i < rows; i += kWarp)
      copy_async<4>(shared_address(shared.lse + i), lse + i, i < s.length);
  };

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp - 1;  // that own keys
  const int key = warp * kCount * kTile;
  const float scale_log2 = scale * kLog2e;
  const unsigned heads = static_cast<unsigned>(s.batch) * static_cast<unsigned>(s.heads);
  Place next = place_of_head(s, blockIdx.x);
  if (warp == warps) fetch(next, 0);
  int buffer = 0;
  for (unsigned head = blockIdx.x; head < heads; head += gridDim.x, buffer ^= 1) {
    const T* const q = shared.matrices + buffer * 4 * matrix;
    const T *const d_o = q + matrix, *const k = d_o + matrix, *const v = k + matrix;
    const Place at = next;
    wait_for_copies();
    __syncthreads();  // all copies are there, and nobody works on the head before
    find_stats<D>(shared, d_o, rows);
    __syncthreads();
    if (head + gridDim.x < heads) {
      next = place_of_head(s, head + gridDim.x);
      if (warp == warps) fetch(next, buffer ^ 1);
    }
    if (warp == warps) {
      for (int query = 0; query < rows; query += group * kTile) {  // the barriers below
        __syncthreads();
        if (query + group * kTile < rows) __syncthreads();
      }
      continue;
    }

    OwnRows<T, D, kCount, true> own;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        // Past the end the last tile again; its sums are not stored.
        const int tile = min(key + j * kTile, rows - kTile) * kStride<D> + i * 16;
        load_matrices(own.rows1[j][i], by_columns<D>(k + tile));
        load_matrices(own.rows2[j][i], by_columns<D>(v + tile));
      }
    Columns<D> columns = columns_at<D>(q, d_o, shared.stats);
    for (int query = 0; query < rows; query += group * kTile) {
      const int tiles = min(group, (rows - query) / kTile);
      unsigned to = by_columns<16>(shared.d_scores + key * kTile);
      const auto keep = [&](int j, int, const unsigned(&tile)[4]) {
        if (j == 0 || key + j * kTile < rows) store_matrices(to + j * kTileBytes<16>, tile);
      };
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        own.template add<1, false>(columns, scale_log2, kTile, keep);
        columns.advance(1);
        to += rows * kTile * sizeof(T);
      }
      __syncthreads();  // dS of these queries is there
      for (int tile = warp; tile < tiles; tile += warps)
        walk_keys<D>(p, at, k, shared.d_scores + tile * kTile * rows, query + tile * kTile, rows,
                     scale);
      if (query + group * kTile < rows) __syncthreads();  // nobody reads it any more
    }
    own.store(p, at, key, scale);
  }
}

}  // namespace

template <class T>
bool backward_head(CudaQueue& queue, const AttentionBackward<T>& p) {
  const auto run = [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    const int rows = ceil_div(p.shape.length, kTile) * kTile, tiles = rows / kTile;
    const int warps = ceil_div(tiles, Tile<D>::count), group = std::min(tiles, Tile<D>::group);
    const std::size_t bytes = Shared<T, D>::bytes(rows, group);
    if (warps > Tile<D>::warps || bytes > queue.limits.shared_bytes_per_block) return false;
    const unsigned resident = Tile<D>::blocks * static_cast<unsigned>(queue.limits.multiprocessors);
    launch(queue, "attention_backward", backward_head_kernel<T, D>,
           std::min(heads_of(p.shape), resident), (warps + 1) * kWarp, bytes, p, rows, group,
           1.0f / std::sqrt(static_cast<float>(p.shape.head_dim)));
    return true;
  };
  if (p.shape.head_dim <= 16) return run(std::integral_constant<int, 16>{});
  if (p.shape.head_dim <= 32) return run(std::integral_constant<int, 32>{});
  return false;
}

template bool backward_head(CudaQueue&, const AttentionBackward<f16>&);
template bool backward_head(CudaQueue&, const AttentionBackward<bf16>&);

}  // namespace fm::attention
