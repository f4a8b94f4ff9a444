// The float path, in fp32 multiply-adds throughout. A row belongs to D / 16 neighbouring lanes
// with 16 of its columns each, so that every head_dim has the same registers; a product of two rows
// is a sum in each lane and one over the row's lanes. The block walks the other side's rows in
// shared memory, a few at a time.
#include <cmath>

#include "kernels/attention/attention.cuh"

namespace fm::attention {
namespace {

constexpr int kWarps = 4;       // at most
constexpr int kKeysAtOnce = 8;  // forward; the running maximum moves once for these
constexpr int kColumnsAtOnce = 4;

// Rows of the other side in shared memory: two matrices of at most 16 KB each.
template <int D>
constexpr int kStage = D <= 32 ? 128 : 4096 / D;
template <int D>
constexpr int kLanes = D / 16;  // of a row
template <int D>
constexpr int kRows = kWarp / kLanes<D>;  // of a warp

// The lane's columns of a row: four vectors of 4, interleaved with those of the row's other lanes,
// so that their reads of shared memory are contiguous.
using Slice = float[16];

template <int D>
__device__ __forceinline__ int column_of(int vector) {
  return (vector * kLanes<D> + static_cast<int>(threadIdx.x) % kLanes<D>)*4;
}

template <int D>
__device__ __forceinline__ void read_slice(Slice& to, const float* row) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 x = *reinterpret_cast<const float4*>(row + column_of<D>(i));
    to[4 * i] = x.x;
    to[4 * i + 1] = x.y;
    to[4 * i + 2] = x.z;
    to[4 * i + 3] = x.w;
  }
}

// From memory: zeros past the last row and column.
template <int D>
__device__ __forceinline__ void load_slice(Slice& to, const Rows<const float>& from, int row,
                                           const AttentionShape& s) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float4 x = {0, 0, 0, 0};
    if (row < s.length && column_of<D>(i) < s.head_dim)
      x = *reinterpret_cast<const float4*>(from[row] + column_of<D>(i));
    to[4 * i] = x.x;
    to[4 * i + 1] = x.y;
    to[4 * i + 2] = x.z;
    to[4 * i + 3] = x.w;
  }
}

template <int D>
__device__ __forceinline__ void store_slice(const Rows<float>& to, const Slice& x, float factor,
                                            int row, const AttentionShape& s) {
  if (row >= s.length) return;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (column_of<D>(i) < s.head_dim)
      *reinterpret_cast<float4*>(to[row] + column_of<D>(i)) = {
          x[4 * i] * factor, x[4 * i + 1] * factor, x[4 * i + 2] * factor, x[4 * i + 3] * factor};
}

// Over the row's lanes; every one gets it.
template <int D>
__device__ __forceinline__ float product(const Slice& a, const Slice& b) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) sum = fmaf(a[i], b[i], sum);
  return warp_sum(sum, kLanes<D>);
}

__device__ __forceinline__ void add_scaled(Slice& to, float factor, const Slice& x) {
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i] = fmaf(factor, x[i], to[i]);
}

// Rows [first, first + kStage) of a matrix to shared memory, zeros past the last row and column.
template <int D>
__device__ void stage_rows(float* to, const Rows<const float>& from, int first,
                           const AttentionShape& s) {
  for (int i = threadIdx.x; i < kStage<D> * (D / 4); i += blockDim.x) {
    const int row = first + i / (D / 4), column = i % (D / 4) * 4;
    float4 x = {0, 0, 0, 0};
    if (row < s.length && column < s.head_dim)
      x = *reinterpret_cast<const float4*>(from[row] + column);
    reinterpret_cast<float4*>(to)[i] = x;
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp)
    forward_kernel(AttentionForward<float> p, float scale_log2) {
  __shared__ float4 k_rows[kStage<D> * D / 4], v_rows[kStage<D> * D / 4];
  float *const k_shared = reinterpret_cast<float*>(k_rows), *const v_shared =
                                                                reinterpret_cast<float*>(v_rows);
  const AttentionShape& s = p.shape;
  const Place at = place_of_block();
  const int query = static_cast<int>(at.block * blockDim.x + threadIdx.x) / kLanes<D>;
  Slice q, o = {};
  load_slice<D>(q, rows_of(p.qkv, s, at.image, at.head, kQ), query, s);
  float top = -INFINITY, sum = 0;  // as in the 16-bit kernel: scores times log2(e) / sqrt(hd)
  for (int first = 0; first < s.length; first += kStage<D>) {
    __syncthreads();
    stage_rows<D>(k_shared, rows_of(p.qkv, s, at.image, at.head, kK), first, s);
    stage_rows<D>(v_shared, rows_of(p.qkv, s, at.image, at.head, kV), first, s);
    __syncthreads();
    const int count = min(kStage<D>, s.length - first);
    for (int key = 0; key < count; key += kKeysAtOnce) {
      float score[kKeysAtOnce], best = -INFINITY;
#pragma unroll
      for (int i = 0; i < kKeysAtOnce; ++i) {
        Slice k;
        read_slice<D>(k, k_shared + (key + i) * D);
        score[i] = product<D>(q, k);
        if (key + i >= count) score[i] = -INFINITY;
        best = fmaxf(best, score[i]);
      }
      const float now = fmaxf(top, best * scale_log2);
      const float shrink = exp2_approx(top - now);
      top = now;
      sum *= shrink;
#pragma unroll
      for (int i = 0; i < 16; ++i) o[i] *= shrink;
#pragma unroll
      for (int i = 0; i < kKeysAtOnce; ++i) {
        const float weight = exp2_approx(fmaf(score[i], scale_log2, -now));
        sum += weight;
        Slice v;
        read_slice<D>(v, v_shared + (key + i) * D);
        add_scaled(o, weight, v);
      }
    }
  }
  store_slice<D>(rows_of(p.o, s, at.image, at.head), o, 1.0f / sum, query, s);
  if (p.lse && query < s.length && threadIdx.x % kLanes<D> == 0)
    p.lse[stats_of(s, at.image, at.head) + query] = (top + log2f(sum)) * kLn2;
}

// The passes of attention_backward_cuda.cu: rows are queries and dq is summed, or rows are keys and
// dk and dv are.
template <int D, bool kKeys>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(AttentionBackward<float> p, float scale) {
  __shared__ float4 rows1[kStage<D> * D / 4], rows2[kStage<D> * D / 4];
  __shared__ float2 column_stats[kKeys ? kStage<D> : 1];
  float *const shared1 = reinterpret_cast<float*>(rows1), *const shared2 =
                                                              reinterpret_cast<float*>(rows2);
  const AttentionShape& s = p.shape;
  const Place at = place_of_block();
  const Rows<const float> q = rows_of(p.qkv, s, at.image, at.head, kQ);
  const Rows<const float> k = rows_of(p.qkv, s, at.image, at.head, kK);
  const Rows<const float> v = rows_of(p.qkv, s, at.image, at.head, kV);
  const Rows<const float> d_o = rows_of(p.d_o, s, at.image, at.head);
  float2* const stats = static_cast<float2*>(p.workspace) + stats_of(s, at.image, at.head);
  const int row = static_cast<int>(at.block * blockDim.x + threadIdx.x) / kLanes<D>;

  Slice own1, own2, sum1 = {}, sum2 = {};
  load_slice<D>(own1, kKeys ? k : q, row, s);
  load_slice<D>(own2, kKeys ? v : d_o, row, s);
  float2 of_row = {0, 0};  // lse log2(e) and delta of a query
  if constexpr (!kKeys) {
    Slice o;
    load_slice<D>(o, rows_of(p.o, s, at.image, at.head), row, s);
    of_row.y = product<D>(own2, o);
    if (row < s.length) {
      of_row.x = p.lse[stats_of(s, at.image, at.head) + row] * kLog2e;
      if (threadIdx.x % kLanes<D> == 0) stats[row] = of_row;
    }
  }
  const float scale_log2 = scale * kLog2e;
  for (int first = 0; first < s.length; first += kStage<D>) {
    __syncthreads();
    stage_rows<D>(shared1, kKeys ? q : k, first, s);
    stage_rows<D>(shared2, kKeys ? d_o : v, first, s);
    if constexpr (kKeys)
      for (int i = threadIdx.x; i < kStage<D>; i += blockDim.x)
        column_stats[i] = first + i < s.length ? stats[first + i] : float2{0, 0};
    __syncthreads();
    const int count = min(kStage<D>, s.length - first);
    for (int column = 0; column < count; column += kColumnsAtOnce) {
#pragma unroll
      for (int i = 0; i < kColumnsAtOnce; ++i) {
        Slice other1, other2;
        read_slice<D>(other1, shared1 + (column + i) * D);
        read_slice<D>(other2, shared2 + (column + i) * D);
        const float2 stat = kKeys ? column_stats[column + i] : of_row;
        const float score = product<D>(own1, other1);
        float prob = exp2_approx(fmaf(score, scale_log2, -stat.x));
        if (column + i >= count) prob = 0;
        const float d_score = prob * (product<D>(own2, other2) - stat.y);
        add_scaled(sum1, d_score, other1);
        if constexpr (kKeys) add_scaled(sum2, prob, other2);
      }
    }
  }
  store_slice<D>(rows_of(p.d_qkv, s, at.image, at.head, kKeys ? kK : kQ), sum1, scale, row, s);
  if constexpr (kKeys) store_slice<D>(rows_of(p.d_qkv, s, at.image, at.head, kV), sum2, 1, row, s);
}

}  // namespace

void forward_float(CudaQueue& queue, const AttentionForward<float>& p) {
  with_padded_dim(p.shape.head_dim, [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    const Split split = split_rows(p.shape.length, kRows<D>, kWarps);
    launch(queue, "attention_forward", forward_kernel<D>, grid_of(p.shape, split.blocks),
           split.warps * kWarp, 0, p, kLog2e / std::sqrt(static_cast<float>(p.shape.head_dim)));
  });
}

void backward_float(CudaQueue& queue, const AttentionBackward<float>& p) {
  with_padded_dim(p.shape.head_dim, [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    const Split split = split_rows(p.shape.length, kRows<D>, kWarps);
    const dim3 grid = grid_of(p.shape, split.blocks);
    const float scale = 1.0f / std::sqrt(static_cast<float>(p.shape.head_dim));
    launch(queue, "attention_backward_q", backward_kernel<D, false>, grid, split.warps * kWarp, 0,
           p, scale);
    launch(queue, "attention_backward_kv", backward_kernel<D, true>, grid, split.warps * kWarp, 0,
           p, scale);
  });
}

}  // namespace fm::attention
