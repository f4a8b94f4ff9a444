// Backward for f16 and bf16, without atomics: two passes of one kernel, each owning what it sums.
//
// A warp owns rows and walks all columns. First pass: rows are queries (q, d_o), columns keys
// (k, v); sums dq, and leaves the statistics of its queries in the workspace. Second pass: rows are
// keys (k, v), columns queries (q, d_o): everything is transposed; sums dk and dv. P is computed
// twice; in return no [L, L] array exists and the order of every sum is fixed. Where a head fits
// into shared memory, attention_backward_head_cuda.cu needs only one.
#include <cmath>

#include "kernels/attention/attention_backward.cuh"

namespace fm {
namespace attention {
namespace {

// Warps of a block at most; times 16 rows of a warp; blocks an SM should hold, from which follow
// the registers a thread may use; columns in one of two buffers, and times 16 taken at a time.
template <int D>
struct Tile {
  static constexpr int warps = 4, count = 1, blocks = 2, stage = D <= 64 ? 64 : 32, wide = 2;
};
template <>
struct Tile<16> {
  static constexpr int warps = 4, count = 2, blocks = 4, stage = 128, wide = 1;
};
template <>
struct Tile<32> {
  static constexpr int warps = 5, count = 1, blocks = 2, stage = 64, wide = 2;
};

template <class T, int D, bool kKeys>
using Own = OwnRows<T, D, Tile<D>::count, kKeys>;

// A buffer: two matrices and the statistics of their columns.
template <int D>
constexpr int kMatrix = Tile<D>::stage* kStride<D>;
template <int D>
constexpr std::size_t kBuffer = 2 * sizeof(f16) * kMatrix<D> +
                                sizeof(float) * kTileStats*(Tile<D>::stage / kTile);
template <int D>
constexpr std::size_t shared_bytes(int warps) {
  const std::size_t rows = Own<f16, D, true>::held ? 0 : 2 * sizeof(f16) * kTile * kStride<D>;
  return 2 * kBuffer<D> + static_cast<std::size_t>(warps) * rows;
}
static_assert(shared_bytes<128>(Tile<128>::warps) <= kPortableShared &&
                  shared_bytes<64>(Tile<64>::warps) <= kPortableShared,
              "backward: buffers and rows must fit any sm_80");

// Where a head's statistics are in the workspace.
template <class T>
__device__ __forceinline__ float* stats_of_head(const AttentionBackward<T>& p, const Place& at) {
  const std::int64_t head = static_cast<std::int64_t>(at.image) * p.shape.heads + at.head;
  return static_cast<float*>(p.workspace) + head * ceil_div(p.shape.length, kTile) * kTileStats;
}

// -lse log2(e) and -delta of queries g and g + 8, also left in the workspace.
template <int D, class T>
__device__ __forceinline__ void find_stats(const AttentionBackward<T>& p, const Place& at,
                                           int first, float (&minus_lse)[2],
                                           float (&minus_delta)[2]) {
  unsigned o[D / 16][4], d_o[D / 16][4];
  load_rows<D>(o, rows_of(p.o, p.shape, at.image, at.head), first, p.shape);
  load_rows<D>(d_o, rows_of(p.d_o, p.shape, at.image, at.head), first, p.shape);
  const float* const lse = p.lse + stats_of(p.shape, at.image, at.head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
      for (int part = half; part < 4; part += 2) sum += dot<T>(o[i][part], d_o[i][part]);
    minus_delta[half] = -row_sum(sum);
    const int row = first + static_cast<int>(threadIdx.x) % kWarp / 4 + half * 8;
    minus_lse[half] = row < p.shape.length ? lse[row] * -kLog2e : 0.0f;
    if (first < p.shape.length && threadIdx.x % 4 == 0)
      put_stats(stats_of_head(p, at), row, minus_lse[half], minus_delta[half]);
  }
}

template <class T, int D, bool kKeys>
__global__ void __launch_bounds__(Tile<D>::warps* kWarp, Tile<D>::blocks)
    backward_kernel(Deferred<AttentionBackward<T>> deferred, float scale) {
  const AttentionBackward<T>& p = deferred.wait();
  extern __shared__ uint4 shared_memory[];
  char* const shared = reinterpret_cast<char*>(shared_memory);
  constexpr int kCount = Tile<D>::count, kStage = Tile<D>::stage, kWide = Tile<D>::wide;
  const AttentionShape& s = p.shape;
  const Place at = place_of_block();
  const Rows<const T> q = rows_of(p.qkv, s, at.image, at.head, kQ);
  const Rows<const T> k = rows_of(p.qkv, s, at.image, at.head, kK);
  const Rows<const T> v = rows_of(p.qkv, s, at.image, at.head, kV);
  const Rows<const T> d_o = rows_of(p.d_o, s, at.image, at.head);
  const auto fetch = [&](int first) {
    T* const to = reinterpret_cast<T*>(shared + first / kStage % 2 * kBuffer<D>);
    copy_rows<D>(to, kKeys ? q : k, first, kStage, s);
    copy_rows<D>(to + kMatrix<D>, kKeys ? d_o : v, first, kStage, s);
    if constexpr (kKeys) {
      const float* const stats = stats_of_head(p, at) + first / kTile * kTileStats;
      const unsigned to_stats = shared_address(to + 2 * kMatrix<D>);
      const int count = ceil_div(min(kStage, s.length - first), kTile) * (kTileStats / 4);
      for (int i = threadIdx.x; i < count; i += blockDim.x)
        copy_async<16>(to_stats + i * 16, stats + i * 4, true);
    }
  };

  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int row = (at.block * warps + warp) * kCount * kTile;
  Own<T, D, kKeys> own;
  if constexpr (own.held) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      load_rows<D>(own.rows1[j], kKeys ? k : q, row + j * kTile, s);
      load_rows<D>(own.rows2[j], kKeys ? v : d_o, row + j * kTile, s);
    }
  } else {
    T* const rows1 = reinterpret_cast<T*>(shared + 2 * kBuffer<D>);
    T* const rows2 = rows1 + warps * kTile * kStride<D>;
    copy_rows<D>(rows1, kKeys ? k : q, at.block * warps * kTile, warps * kTile, s);
    copy_rows<D>(rows2, kKeys ? v : d_o, at.block * warps * kTile, warps * kTile, s);
    own.shared1 = by_columns<D>(rows1 + warp * kTile * kStride<D>);
    own.shared2 = by_columns<D>(rows2 + warp * kTile * kStride<D>);
  }
  fetch(0);
  if constexpr (!kKeys)
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      find_stats<D>(p, at, row + j * kTile, own.minus_lse[j], own.minus_delta[j]);

  const float scale_log2 = scale * kLog2e;
  const auto keep_nothing = [](int, int, const unsigned(&)[4]) {};
  for (int first = 0; first < s.length; first += kStage) {
    wait_for_copies();
    __syncthreads();  // all copies of this buffer are there, and nobody reads the other one
    if (first + kStage < s.length) fetch(first + kStage);
    if (row >= s.length) continue;
    const T* const matrix1 = reinterpret_cast<const T*>(shared + first / kStage % 2 * kBuffer<D>);
    const T* const matrix2 = matrix1 + kMatrix<D>;
    Columns<D> columns =
        columns_at<D>(matrix1, matrix2, reinterpret_cast<const float*>(matrix2 + kMatrix<D>));
    int left = min(kStage, s.length - first);
    for (; left >= kWide * kTile; left -= kWide * kTile, columns.advance(kWide))
      own.template add<kWide, false>(columns, scale_log2, left, keep_nothing);
    for (; left > 0; left -= kTile, columns.advance(1))
      own.template add<1, !kKeys>(columns, scale_log2, left, keep_nothing);
  }
  if (row < s.length) own.store(p, at, row, scale);
}

}  // namespace
}  // namespace attention

template <class T>
void attention_backward(CudaQueue& queue, const AttentionBackward<T>& p) {
  using namespace attention;
  check_attention_shape<T>(p.shape);
  if constexpr (std::is_same_v<T, float>) {
    backward_float(queue, p);
  } else {
    if (backward_head(queue, p)) return;
    with_padded_dim(p.shape.head_dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      const Split split = split_rows(p.shape.length, Tile<D>::count * kTile, Tile<D>::warps);
      const dim3 grid = grid_of(p.shape, split.blocks);
      const int threads = split.warps * kWarp;
      const std::size_t bytes = shared_bytes<D>(split.warps);
      const float scale = 1.0f / std::sqrt(static_cast<float>(p.shape.head_dim));
      launch(queue, "attention_backward_q", backward_kernel<T, D, false>, grid, threads, bytes, p,
             scale);
      launch(queue, "attention_backward_kv", backward_kernel<T, D, true>, grid, threads, bytes, p,
             scale);
    });
  }
}

template void attention_backward(CudaQueue&, const AttentionBackward<float>&);
template void attention_backward(CudaQueue&, const AttentionBackward<f16>&);
template void attention_backward(CudaQueue&, const AttentionBackward<bf16>&);

}  // namespace fm
