#include <algorithm>
#include <initializer_list>

#include "kernels/base/approx.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

// A block computes 128 columns of some rows, 64 of the inner dimension a stage. Eight warps: 32
// rows each of some columns. The product is bound by memory (on an H100 the paper's 6.6 GFLOP take
// half the time of their 64 MB, 115 with a gate), so the point is to have loads under way all the
// time: several blocks a multiprocessor, cp.async stages. Tiles lie in shared memory as rows of
// 16-byte chunks, chunk c of row i at c ^ (i % 8), so that eight rows of one column of chunks are
// in eight different banks.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 128, kDepth = 64;
constexpr int kChunk = 8;  // elements of 16 bytes
constexpr int kWarpRows = 32;

// More rows read V less often (without a gate 31 us at the paper's shape on an H100, 37 with 64
// rows); with a gate there is more to do between a stage's arrival and its product, and more blocks
// hide it (50 us; 54 with 128 rows and two blocks).
template <bool kGated>
struct Cut {
  static constexpr int rows = kGated ? 64 : 128, blocks = kGated ? 3 : 2;
  static constexpr int stages = kGated ? 2 : 3;
  // Warp w: rows w % warps_down, columns w / warps_down.
  static constexpr int warps_down = rows / kWarpRows;
  static constexpr int warps_across = kThreads / kWarp / warps_down;
  static constexpr int warp_columns = kColumns / warps_across, parts = warp_columns / 8;
};

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
  // Multiplies what this thread has fetched by silu of what it has fetched to `z`.
  __device__ __forceinline__ void gate(const Tile& z) const {
    const int row = threadIdx.x / kRowChunks, c = threadIdx.x % kRowChunks;
    T *own = chunk(row, c), *own_z = z.chunk(row, c);
#pragma unroll
    for (int i = 0; i < kHeight / kStep; ++i) {
      float x[kChunk], gate[kChunk];
      load_wide(x, own + i * kStep * kWidth);
      load_wide(gate, own_z + i * kStep * kWidth);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) x[e] *= gate[e] * sigmoid_approx(gate[e]);
      store_narrow(own + i * kStep * kWidth, x);
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

// The product is with V^T: B's columns are rows of V.
template <class T>
using BTile = Tile<T, kColumns, kDepth>;

template <class T, bool kGated>
struct Stages : Cut<kGated> {
  using ATile = Tile<T, Cut<kGated>::rows, kDepth>;  // of z, too
  using Result = Tile<T, Cut<kGated>::rows, kColumns>;
  static constexpr int a = Cut<kGated>::rows * kDepth, b = kColumns * kDepth;  // elements
  static constexpr int each = (kGated ? 2 : 1) * a + b;
  static constexpr std::size_t bytes = sizeof(T) * Cut<kGated>::stages * each;
  static_assert(sizeof(T) * Cut<kGated>::rows * kColumns <= bytes,
                "the result lies where the stages were");
};

template <class Size>
struct Lane {
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int down = warp % Size::warps_down, across = warp / Size::warps_down;
  int first_row = down * kWarpRows, first_column = across * Size::warp_columns;
  // Where this lane stands in a fragment of sums.
  int g = lane / 4, q = lane % 4;
};

// Sums of one warp: [two 16-row halves][8-column parts].
template <class Size>
using Sums = float[2][Size::parts][4];

// sums += A B over one stage. squares(step, half, a) sees each fragment of A.
template <class T, class Size, class Squares>
__device__ __forceinline__ void multiply_stage(Sums<Size>& sums, const typename Size::ATile& a_tile,
                                               const BTile<T>& b_tile, const Lane<Size>& at,
                                               Squares&& squares) {
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    unsigned a[2][4], b[Size::parts / 2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_matrices<false>(a[half], a_tile.chunk(at.first_row + half * 16 + at.lane % 16,
                                                 k / kChunk + at.lane / 16));
      squares(k / 16, half, a[half]);
    }
#pragma unroll
    for (int j = 0; j < Size::parts / 2; ++j)  // two parts, the low and the high half of k of each
      load_matrices<false>(b[j],
                           b_tile.chunk(at.first_column + j * 16 + at.lane / 16 * 8 + at.lane % 8,
                                        k / kChunk + at.lane / 8 % 2));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < Size::parts; ++j)
        multiply_add<T>(sums[half][j], a[half], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

template <class T, bool kGated>
__global__ void __launch_bounds__(kThreads, Cut<kGated>::blocks)
    forward_kernel(Deferred<RmsNormLinearForward<T>> deferred) {
  const RmsNormLinearForward<T>& p = deferred.wait();
  using Size = Stages<T, kGated>;
  using ATile = typename Size::ATile;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ float row_squares[Size::warps_across][Size::rows];
  T* const shared = reinterpret_cast<T*>(memory);
  const int tiles = ceil_div(p.shape.out, kColumns);
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x / tiles) * Size::rows;
  const int column0 = static_cast<int>(blockIdx.x % tiles) * kColumns;
  const std::int64_t rows = p.shape.rows - row0;
  const int columns = p.shape.out - column0, in = p.shape.in;
  const int stages = in / kDepth;

  const auto a_tile = [&](int stage) { return ATile{shared + stage % Size::stages * Size::each}; };
  const auto b_tile = [&](int stage) { return BTile<T>{a_tile(stage).at + Size::a}; };
  const auto z_tile = [&](int stage) { return ATile{b_tile(stage).at + Size::b}; };
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      a_tile(stage).fetch(p.x + row0 * in + stage * kDepth, in, rows, kDepth);
      if constexpr (kGated)
        z_tile(stage).fetch(p.z + row0 * p.shape.z_stride + stage * kDepth,
                            static_cast<int>(p.shape.z_stride), rows, kDepth);
      b_tile(stage).fetch(p.v + static_cast<std::int64_t>(column0) * in + stage * kDepth, in,
                          columns, kDepth);
    }
    commit_copies();
  };
  for (int stage = 0; stage < Size::stages - 1; ++stage) fetch(stage);

  const Lane<Size> at;
  Sums<Size> sums = {};
  float squares[2][2] = {};  // of rows g and g + 8 of each half
  for (int stage = 0; stage < stages; ++stage) {
    wait_copies<Size::stages - 2>();
    if constexpr (kGated) a_tile(stage).gate(z_tile(stage));
    __syncthreads();
    fetch(stage + Size::stages - 1);
    multiply_stage<T, Size>(sums, a_tile(stage), b_tile(stage), at,
                            [&](int step, int half, const unsigned(&a)[4]) {
                              // The warps of these rows take turns.
                              if (step % Size::warps_across != at.across) return;
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
      if (at.q == 0) row_squares[at.across][at.first_row + half * 16 + i * 8 + at.g] = sum;
    }
  wait_copies<0>();
  __syncthreads();  // the squares are there, and nobody reads the stages any more

  const typename Size::Result result{shared};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.first_row + half * 16 + i * 8 + at.g;
      float square = row_squares[0][row];
#pragma unroll
      for (int warp = 1; warp < Size::warps_across; ++warp) square += row_squares[warp][row];
      const float mean = square / static_cast<float>(in);
      const float r = rsqrtf(mean + static_cast<float>(p.shape.eps));
      if (column0 == 0 && at.first_column == 0 && at.q == 0 && row < rows) p.r[row0 + row] = r;
#pragma unroll
      for (int j = 0; j < Size::parts; ++j)
        *reinterpret_cast<unsigned*>(result.element(row, at.first_column + j * 8 + at.q * 2)) =
            narrow_pair<T>(r * sums[half][j][i * 2], r * sums[half][j][i * 2 + 1]);
    }
  __syncthreads();
  result.store(p.y + row0 * p.shape.out + column0, p.shape.out, rows, columns);
}

std::int64_t blocks_of(const RmsNormLinearShape& s) {
  const int rows = s.gated() ? Cut<true>::rows : Cut<false>::rows;
  return ceil_div(s.rows, rows) * ceil_div(s.out, kColumns);
}

template <class T, bool kGated>
void launch_forward(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  launch(queue, "rmsnorm_linear_forward", forward_kernel<T, kGated>,
         dim3(static_cast<unsigned>(blocks_of(p.shape))), kThreads, Stages<T, kGated>::bytes, p);
}

}  // namespace

template <class T>
bool rmsnorm_linear_forward_fits(const CudaQueue& queue, const RmsNormLinearShape& s) {
  return sizeof(T) == 2 && s.in % kDepth == 0 && s.out % kChunk == 0 && s.z_stride % kChunk == 0 &&
         blocks_of(s) <= kMaxGrid &&
         std::max(Stages<T, true>::bytes, Stages<T, false>::bytes) <=
             queue.limits.shared_bytes_per_block;
}

template <class T>
bool rmsnorm_linear_forward_fused(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  const std::initializer_list<const T*> arrays = {p.x, p.v, p.y, p.z};
  if (!rmsnorm_linear_forward_fits<T>(queue, p.shape) ||
      !std::all_of(arrays.begin(), arrays.end(), [](const T* array) {
        return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
      }))
    return false;
  if (p.shape.gated()) launch_forward<T, true>(queue, p);
  else launch_forward<T, false>(queue, p);
  return true;
}

template bool rmsnorm_linear_forward_fits<float>(const CudaQueue&, const RmsNormLinearShape&);
template bool rmsnorm_linear_forward_fits<f16>(const CudaQueue&, const RmsNormLinearShape&);
template bool rmsnorm_linear_forward_fits<bf16>(const CudaQueue&, const RmsNormLinearShape&);
template bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<f16>&);
template bool rmsnorm_linear_forward_fused(CudaQueue&, const RmsNormLinearForward<bf16>&);

}  // namespace fm
