// Backward for f16 and bf16, without atomics: two passes of one kernel, each owning what it sums.
//
// With X = q k^T / sqrt(hd), P = exp(X - lse), Y = d_o v^T, delta = sum of d_o o over hd:
//   dS = P (Y - delta),   dq = dS k / sqrt(hd),   dk = dS^T q / sqrt(hd),   dv = P^T d_o.
// A warp owns 16 rows and walks all columns. First pass: rows are queries (q, d_o), columns keys
// (k, v); sums dq, and leaves lse log2(e) and delta in the workspace. Second pass: rows are keys
// (k, v), columns queries (q, d_o): everything is transposed; sums dk and dv. P is computed twice;
// in return no [L, L] array exists and the order of every sum is fixed.
#include <cmath>

#include "kernels/attention/attention.cuh"

namespace fm {
namespace attention {
namespace {

template <int D>
constexpr int kWarps = D <= 32 ? 5 : 4;  // at most; 16 rows each
// Blocks an SM should hold: the registers a thread may use follow.
template <int D>
constexpr int kBlocks = D == 16 ? 3 : 2;
// Columns in one buffer, and taken at a time where so many are left.
template <int D>
constexpr int kStage = D <= 64 ? 64 : 32;
constexpr int kWide = 32;
// Whether the rows stay in registers: at 128 they would leave none for the sums.
template <int D>
constexpr bool kHeld = D <= 64;

// A buffer: two matrices and a statistic {lse log2(e), delta} a column.
template <int D>
constexpr std::size_t kBuffer = 2 * kStage<D>* kStride<D> * sizeof(f16) + kStage<D> *
                                                                              sizeof(float2);
template <int D>
constexpr std::size_t shared_bytes(int warps) {
  const std::size_t rows = kHeld<D> ? 0 : 2 * sizeof(f16) * kTile * kStride<D>;
  return 2 * kBuffer<D> + static_cast<std::size_t>(warps) * rows;
}
static_assert(shared_bytes<128>(kWarps<128>) <= kPortableShared &&
                  shared_bytes<64>(kWarps<64>) <= kPortableShared,
              "backward: buffers and rows must fit any sm_80");

// Sixteen rows of a warp; kKeys: they are keys, else queries. In the names, 1 belongs to the
// product X and 2 to Y.
template <class T, int D, bool kKeys>
struct OwnRows {
  unsigned rows1[kHeld<D> ? D / 16 : 1][4], rows2[kHeld<D> ? D / 16 : 1][4];
  const T *shared1, *shared2;             // where they are when not held
  float sum1[D / 8][4] = {};              // dq or dk, before the scale
  float sum2[kKeys ? D / 8 : 1][4] = {};  // dv
  float lse[2], delta[2];                 // of queries g and g + 8; lse in units of ln 2

  // Takes kColumns columns in; past the first `left` they do not count.
  template <int kColumns>
  __device__ __forceinline__ void add(const T* columns1, const T* columns2, const float2* stats,
                                      float scale_log2, int left) {
    float x[kColumns / 8][4] = {}, y[kColumns / 8][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      unsigned a1[4], a2[4];
      if constexpr (kHeld<D>) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          a1[part] = rows1[i][part];
          a2[part] = rows2[i][part];
        }
      } else {
        load_matrices(a1, by_columns<D>(shared1 + i * 16));
        load_matrices(a2, by_columns<D>(shared2 + i * 16));
      }
#pragma unroll
      for (int tile = 0; tile < kColumns / 16; ++tile) {
        unsigned b[4];
        load_matrices(b, by_rows<D>(columns1 + tile * 16 * kStride<D> + i * 16));
        multiply_add<T>(x[2 * tile], a1, b[0], b[1]);
        multiply_add<T>(x[2 * tile + 1], a1, b[2], b[3]);
        load_matrices(b, by_rows<D>(columns2 + tile * 16 * kStride<D> + i * 16));
        multiply_add<T>(y[2 * tile], a2, b[0], b[1]);
        multiply_add<T>(y[2 * tile + 1], a2, b[2], b[3]);
      }
    }
    // x becomes P and y dS. A query past the end has statistics, q and d_o of zero: its P is 1
    // and adds nothing. A key past the end has a score of 0, whose P may be infinite: select.
    const int pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      float4 of_pair;
      if constexpr (kKeys) of_pair = *reinterpret_cast<const float4*>(stats + n * 8 + pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float row_lse, row_delta;
        if constexpr (kKeys) {
          row_lse = i % 2 ? of_pair.z : of_pair.x;
          row_delta = i % 2 ? of_pair.w : of_pair.y;
        } else {
          row_lse = lse[i / 2];
          row_delta = delta[i / 2];
        }
        float prob = exp2_approx(fmaf(x[n][i], scale_log2, -row_lse));
        if constexpr (!kKeys && kColumns == kTile)
          if (n * 8 + pair + i % 2 >= left) prob = 0.0f;
        x[n][i] = prob;
        y[n][i] = prob * (y[n][i] - row_delta);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kColumns / 16; ++tile) {
      unsigned a[4], b[4];
      round_to_a<T>(a, y[2 * tile], y[2 * tile + 1]);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        load_matrices_transposed(b, by_columns<D>(columns1 + tile * 16 * kStride<D> + i * 16));
        multiply_add<T>(sum1[2 * i], a, b[0], b[1]);
        multiply_add<T>(sum1[2 * i + 1], a, b[2], b[3]);
      }
      if constexpr (kKeys) {
        round_to_a<T>(a, x[2 * tile], x[2 * tile + 1]);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          load_matrices_transposed(b, by_columns<D>(columns2 + tile * 16 * kStride<D> + i * 16));
          multiply_add<T>(sum2[2 * i], a, b[0], b[1]);
          multiply_add<T>(sum2[2 * i + 1], a, b[2], b[3]);
        }
      }
    }
  }
};

// lse and delta of queries g and g + 8, also left in the workspace.
template <int D, class T>
__device__ __forceinline__ void find_stats(const AttentionBackward<T>& p, const Place& at,
                                           int first, float (&lse)[2], float (&delta)[2]) {
  unsigned o[D / 16][4], d_o[D / 16][4];
  load_rows<D>(o, rows_of(p.o, p.shape, at.image, at.head), first, p.shape);
  load_rows<D>(d_o, rows_of(p.d_o, p.shape, at.image, at.head), first, p.shape);
  const std::int64_t stats = stats_of(p.shape, at.image, at.head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
      for (int part = half; part < 4; part += 2) {
        const float2 a = unpack<T>(o[i][part]), b = unpack<T>(d_o[i][part]);
        sum = fmaf(a.x, b.x, fmaf(a.y, b.y, sum));
      }
    delta[half] = row_sum(sum);
    const int row = first + threadIdx.x % kWarp / 4 + half * 8;
    lse[half] = row < p.shape.length ? p.lse[stats + row] * kLog2e : 0.0f;
    if (row < p.shape.length && threadIdx.x % 4 == 0)
      static_cast<float2*>(p.workspace)[stats + row] = {lse[half], delta[half]};
  }
}

template <class T, int D, bool kKeys>
__global__ void __launch_bounds__(kWarps<D>* kWarp, kBlocks<D>)
    backward_kernel(AttentionBackward<T> p, int blocks, float scale) {
  extern __shared__ uint4 shared_memory[];
  char* const shared = reinterpret_cast<char*>(shared_memory);
  constexpr int kMatrix = kStage<D> * kStride<D>;
  const AttentionShape& s = p.shape;
  const Place at = place_of(s, blocks);
  const Rows<const T> q = rows_of(p.qkv, s, at.image, at.head, kQ);
  const Rows<const T> k = rows_of(p.qkv, s, at.image, at.head, kK);
  const Rows<const T> v = rows_of(p.qkv, s, at.image, at.head, kV);
  const Rows<const T> d_o = rows_of(p.d_o, s, at.image, at.head);
  const float2* const stats =
      static_cast<const float2*>(p.workspace) + stats_of(s, at.image, at.head);
  const auto buffer = [&](int first) { return shared + first / kStage<D> % 2 * kBuffer<D>; };
  const auto fetch = [&](int first) {
    T* const to = reinterpret_cast<T*>(buffer(first));
    copy_rows<D>(to, kKeys ? q : k, first, kStage<D>, s);
    copy_rows<D>(to + kMatrix, kKeys ? d_o : v, first, kStage<D>, s);
    if constexpr (kKeys) {
      float2* const to_stats = reinterpret_cast<float2*>(to + 2 * kMatrix);
      for (int i = threadIdx.x; i < kStage<D>; i += blockDim.x) {
        const bool there = first + i < s.length;
        copy_async<sizeof(float2)>(to_stats + i, there ? stats + first + i : stats, there);
      }
    }
  };

  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int row = (at.block * warps + warp) * kTile;
  OwnRows<T, D, kKeys> own;
  if constexpr (kHeld<D>) {
    load_rows<D>(own.rows1, kKeys ? k : q, row, s);
    load_rows<D>(own.rows2, kKeys ? v : d_o, row, s);
  } else {
    T* const rows1 = reinterpret_cast<T*>(shared + 2 * kBuffer<D>);
    T* const rows2 = rows1 + warps * kTile * kStride<D>;
    copy_rows<D>(rows1, kKeys ? k : q, at.block * warps * kTile, warps * kTile, s);
    copy_rows<D>(rows2, kKeys ? v : d_o, at.block * warps * kTile, warps * kTile, s);
    own.shared1 = rows1 + warp * kTile * kStride<D>;
    own.shared2 = rows2 + warp * kTile * kStride<D>;
  }
  fetch(0);
  if constexpr (!kKeys) find_stats<D>(p, at, row, own.lse, own.delta);

  for (int first = 0; first < s.length; first += kStage<D>) {
    wait_for_copies();
    __syncthreads();  // all copies of this buffer are there, and nobody reads the other one
    if (first + kStage<D> < s.length) fetch(first + kStage<D>);
    if (row >= s.length) continue;
    const T* const columns = reinterpret_cast<const T*>(buffer(first));
    const float2* const of_columns = reinterpret_cast<const float2*>(columns + 2 * kMatrix);
    const int count = min(kStage<D>, s.length - first);
    int column = 0;
    for (; column + kWide <= count; column += kWide)
      own.template add<kWide>(columns + column * kStride<D>,
                              columns + kMatrix + column * kStride<D>, of_columns + column,
                              scale * kLog2e, kWide);
    for (; column < count; column += kTile)
      own.template add<kTile>(columns + column * kStride<D>,
                              columns + kMatrix + column * kStride<D>, of_columns + column,
                              scale * kLog2e, count - column);
  }
  if (row >= s.length) return;

  const float scales[2] = {scale, scale}, ones[2] = {1, 1};
  store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kKeys ? kK : kQ), own.sum1, scales, row, s);
  if constexpr (kKeys)
    store_rows<D>(rows_of(p.d_qkv, s, at.image, at.head, kV), own.sum2, ones, row, s);
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
    with_padded_dim(p.shape.head_dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      const Split split = split_rows(p.shape.length, kTile, kWarps<D>);
      const dim3 grid = grid_of(p.shape, split);
      const int threads = split.warps * kWarp;
      const std::size_t bytes = shared_bytes<D>(split.warps);
      const float scale = 1.0f / std::sqrt(static_cast<float>(p.shape.head_dim));
      launch(queue, "attention_backward_q", backward_kernel<T, D, false>, grid, threads, bytes, p,
             split.blocks, scale);
      launch(queue, "attention_backward_kv", backward_kernel<T, D, true>, grid, threads, bytes, p,
             split.blocks, scale);
    });
  }
}

template void attention_backward(CudaQueue&, const AttentionBackward<float>&);
template void attention_backward(CudaQueue&, const AttentionBackward<f16>&);
template void attention_backward(CudaQueue&, const AttentionBackward<bf16>&);

}  // namespace fm
