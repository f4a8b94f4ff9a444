#include <algorithm>
#include <initializer_list>

#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

// A block computes 128 rows by 128 columns, 64 of the inner dimension a stage. Eight warps: 32 rows
// by 64 columns each. Both products are bound by memory (on an H100 the paper's 6.6 GFLOP take half
// the time of their 64 and 115 MB), so the point is to have loads under way all the time: two
// blocks a multiprocessor, cp.async stages. Tiles lie in shared memory as rows of 16-byte chunks,
// chunk c of row i at c ^ (i % 8), so that eight rows of one column of chunks are in eight
// different banks.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 128, kColumns = 128, kDepth = 64;
constexpr int kChunk = 8;  // elements of 16 bytes
constexpr int kWarpRows = 32, kWarpColumns = 64;
constexpr int kWarpsDown = kRows / kWarpRows;  // warp w: rows w % 4, columns w / 4
constexpr int kForwardStages = 3, kBackwardStages = 2;

// [kHeight, kWidth] elements. Copying in and out, a thread takes one column of chunks and every
// kStep-th row: kStep is a multiple of 8, so that its place in a row is always the same.
template <class T, int kHeight, int kWidth>
struct Tile {
  static constexpr int kRowChunks = kWidth / kChunk;
  static constexpr int kStep = kThreads / kRowChunks;
  static_assert(kStep % kChunk == 0 && kHeight % kStep == 0, "Tile: a thread's rows look alike");
  T* at;

  __device__ T* chunk(int row, int c) const {
    return at + (row * kRowChunks + (c ^ (row % kChunk))) * kChunk;
  }
  __device__ T* element(int row, int column) const {
    return chunk(row, column / kChunk) + column % kChunk;
  }
  // Starts copying rows of `from`, `stride` elements apart; zeros past `rows` and `columns`.
  __device__ __forceinline__ void fetch(const T* from, int stride, std::int64_t rows,
                                        int columns) const {
    const int row = threadIdx.x / kRowChunks, c = threadIdx.x % kRowChunks;
    const int there = c * kChunk < columns ? static_cast<int>(min(rows, std::int64_t{kHeight})) : 0;
    T* to = chunk(row, c);
    const T* source = from + static_cast<std::int64_t>(row) * stride + c * kChunk;
#pragma unroll
    for (int i = 0; i < kHeight / kStep; ++i) {
      copy_async(to + i * kStep * kWidth, source, row + i * kStep < there);
      source += kStep * stride;
    }
  }
  __device__ __forceinline__ void store(T* to, int stride, std::int64_t rows, int columns) const {
    const int row = threadIdx.x / kRowChunks, c = threadIdx.x % kRowChunks;
    const T* from = chunk(row, c);
    to += static_cast<std::int64_t>(row) * stride + c * kChunk;
#pragma unroll
    for (int i = 0; i < kHeight / kStep; ++i) {
      if (row + i * kStep < rows && c * kChunk < columns)
        *reinterpret_cast<Vec<T, kChunk>*>(to) =
            *reinterpret_cast<const Vec<T, kChunk>*>(from + i * kStep * kWidth);
      to += kStep * stride;
    }
  }
};

template <class T>
using ATile = Tile<T, kRows, kDepth>;
// Forward multiplies by V^T, so B's columns are rows of V; backward by V.
template <class T>
using VRows = Tile<T, kColumns, kDepth>;
template <class T>
using VColumns = Tile<T, kDepth, kColumns>;
template <class T>
using Result = Tile<T, kRows, kColumns>;

constexpr int kStageElements = kRows * kDepth + kColumns * kDepth;

struct Lane {
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int first_row = warp % kWarpsDown * kWarpRows, first_column = warp / kWarpsDown * kWarpColumns;
  // Where this lane stands in a fragment of sums.
  int g = lane / 4, q = lane % 4;
};

// Sums of one warp: [two 16-row halves][eight 8-column parts].
using Sums = float[2][8][4];

// sums += A B over one stage. squares(half, a) sees each fragment of A.
template <class T, class B, class Squares>
__device__ __forceinline__ void multiply_stage(Sums& sums, const ATile<T>& a_tile, const B& b_tile,
                                               const Lane& at, Squares&& squares) {
  constexpr bool kRowsOfV = std::is_same_v<B, VRows<T>>;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    unsigned a[2][4], b[4][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_matrices<false>(a[half], a_tile.chunk(at.first_row + half * 16 + at.lane % 16,
                                                 k / kChunk + at.lane / 16));
      squares(k / 16, half, a[half]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // 16 columns: two parts, the low and the high half of k of each
      const int column = at.first_column + j * 16;
      if constexpr (kRowsOfV)
        load_matrices<false>(b[j], b_tile.chunk(column + at.lane / 16 * 8 + at.lane % 8,
                                                k / kChunk + at.lane / 8 % 2));
      else
        load_matrices<true>(b[j], b_tile.chunk(k + at.lane % 16, column / kChunk + at.lane / 16));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        multiply_add<T>(sums[half][j], a[half], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(Deferred<RmsNormLinearForward<T>> deferred) {
  const RmsNormLinearForward<T>& p = deferred.wait();
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ float row_squares[2][kRows];
  T* const shared = reinterpret_cast<T*>(memory);
  const int tiles = ceil_div(p.shape.out, kColumns);
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x / tiles) * kRows;
  const int column0 = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const std::int64_t rows = p.shape.rows - row0;
  const int columns = p.shape.out - column0, in = p.shape.in;
  const int stages = in / kDepth;

  const auto a_tile = [&](int stage) {
    return ATile<T>{shared + stage % kForwardStages * kStageElements};
  };
  const auto b_tile = [&](int stage) { return VRows<T>{a_tile(stage).at + kRows * kDepth}; };
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      a_tile(stage).fetch(p.x + row0 * in + stage * kDepth, in, rows, kDepth);
      b_tile(stage).fetch(p.v + static_cast<std::int64_t>(column0) * in + stage * kDepth, in,
                          columns, kDepth);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kForwardStages - 1; ++stage) fetch(stage);

  const Lane at;
  Sums sums = {};
  float squares[2][2] = {};  // of rows g and g + 8 of each half
  for (int stage = 0; stage < stages; ++stage) {
    wait_copies<kForwardStages - 2>();
    __syncthreads();
    fetch(stage + kForwardStages - 1);
    multiply_stage<T>(sums, a_tile(stage), b_tile(stage), at,
                      [&](int step, int half, const unsigned(&a)[4]) {
                        // The two warps of these rows take every other step.
                        if (step % 2 != at.warp / kWarpsDown) return;
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                          const float2 pair = widen_pair<T>(a[i]);
                          float& sum = squares[half][i % 2];
                          sum = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, sum));
                        }
                      });
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = warp_sum(squares[half][i], 4);
      if (at.q == 0)
        row_squares[at.warp / kWarpsDown][at.first_row + half * 16 + i * 8 + at.g] = sum;
    }
  wait_copies<0>();
  __syncthreads();  // the squares are there, and nobody reads the stages any more

  const Result<T> result{shared};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.first_row + half * 16 + i * 8 + at.g;
      const float mean = (row_squares[0][row] + row_squares[1][row]) / static_cast<float>(in);
      const float r = rsqrtf(mean + static_cast<float>(p.shape.eps));
      if (column0 == 0 && at.first_column == 0 && at.q == 0 && row < rows) p.r[row0 + row] = r;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        *reinterpret_cast<unsigned*>(result.element(row, at.first_column + j * 8 + at.q * 2)) =
            narrow_pair<T>(r * sums[half][j][i * 2], r * sums[half][j][i * 2 + 1]);
    }
  __syncthreads();
  result.store(p.y + row0 * p.shape.out + column0, p.shape.out, rows, columns);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    backward_input_kernel(Deferred<RmsNormLinearBackwardInput<T>> deferred) {
  const RmsNormLinearBackwardInput<T>& p = deferred.wait();
  extern __shared__ __align__(128) unsigned char memory[];
  T* const shared = reinterpret_cast<T*>(memory);
  const int tiles = ceil_div(p.shape.in, kColumns);
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x / tiles) * kRows;
  const int column0 = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const std::int64_t rows = p.shape.rows - row0;
  const int columns = p.shape.in - column0, in = p.shape.in, out = p.shape.out;
  const int stages = out / kDepth;

  const auto a_tile = [&](int stage) {
    return ATile<T>{shared + stage % kBackwardStages * kStageElements};
  };
  const auto b_tile = [&](int stage) { return VColumns<T>{a_tile(stage).at + kRows * kDepth}; };
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      a_tile(stage).fetch(p.g + row0 * out + stage * kDepth, out, rows, kDepth);
      b_tile(stage).fetch(p.v + static_cast<std::int64_t>(stage) * kDepth * in + column0, in,
                          kDepth, columns);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kBackwardStages; ++stage) fetch(stage);
  // x comes last, as it is wanted last, and becomes dx where it lies.
  const Result<T> result{shared + kBackwardStages * kStageElements};
  result.fetch(p.x + row0 * in + column0, in, rows, columns);
  commit_copies();

  const Lane at;
  Sums sums = {};
  for (int stage = 0; stage < stages; ++stage) {
    // Groups in order: the stages, x, then refilled stages.
    if (stage < kBackwardStages) wait_copies<kBackwardStages>();
    else wait_copies<kBackwardStages - 1>();
    __syncthreads();
    multiply_stage<T>(sums, a_tile(stage), b_tile(stage), at,
                      [](int, int, const unsigned(&)[4]) {});
    __syncthreads();
    fetch(stage + kBackwardStages);
  }
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.first_row + half * 16 + i * 8 + at.g;
      const float s = row < rows ? p.s[row0 + row] : 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        auto* pair =
            reinterpret_cast<unsigned*>(result.element(row, at.first_column + j * 8 + at.q * 2));
        const float2 x = widen_pair<T>(*pair);
        *pair = narrow_pair<T>(fmaf(-s, x.x, sums[half][j][i * 2]),
                               fmaf(-s, x.y, sums[half][j][i * 2 + 1]));
      }
    }
  __syncthreads();
  result.store(p.dx + row0 * in + column0, in, rows, columns);
}

template <class T>
constexpr std::size_t kForwardBytes = kForwardStages* kStageElements * sizeof(T);
template <class T>
constexpr std::size_t kBackwardBytes = (kBackwardStages * kStageElements + kRows * kColumns) *
                                       sizeof(T);

template <class T>
bool fits(const CudaQueue& queue, int inner, int outer, std::size_t bytes, std::int64_t blocks,
          std::initializer_list<const T*> arrays) {
  return inner % kDepth == 0 && outer % kChunk == 0 && blocks <= kMaxGrid &&
         bytes <= queue.limits.shared_bytes_per_block &&
         std::all_of(arrays.begin(), arrays.end(), [](const T* array) {
           return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
         });
}

std::int64_t blocks_of(std::int64_t rows, int columns) {
  return ceil_div(rows, kRows) * ceil_div(columns, kColumns);
}

}  // namespace

template <class T>
bool rmsnorm_linear_forward_fused(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  const std::int64_t blocks = blocks_of(p.shape.rows, p.shape.out);
  if (!fits<T>(queue, p.shape.in, p.shape.out, kForwardBytes<T>, blocks, {p.x, p.v, p.y}))
    return false;
  launch(queue, "rmsnorm_linear_forward", forward_kernel<T>, dim3(static_cast<unsigned>(blocks)),
         kThreads, kForwardBytes<T>, p);
  return true;
}

template <class T>
bool rmsnorm_linear_backward_input_fused(CudaQueue& queue, const RmsNormLinearBackwardInput<T>& p) {
  const std::int64_t blocks = blocks_of(p.shape.rows, p.shape.in);
  if (!fits<T>(queue, p.shape.out, p.shape.in, kBackwardBytes<T>, blocks, {p.g, p.v, p.x, p.dx}))
    return false;
  launch(queue, "rmsnorm_linear_backward_input", backward_input_kernel<T>,
         dim3(static_cast<unsigned>(blocks)), kThreads, kBackwardBytes<T>, p);
  return true;
}

template bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<f16>&);
template bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<bf16>&);
template bool rmsnorm_linear_backward_input_fused(CudaQueue&,
                                                  const RmsNormLinearBackwardInput<f16>&);
template bool rmsnorm_linear_backward_input_fused(CudaQueue&,
                                                  const RmsNormLinearBackwardInput<bf16>&);

}  // namespace fm
