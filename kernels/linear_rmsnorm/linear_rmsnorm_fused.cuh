// linear_rmsnorm's kernels for 16-bit elements: forward makes the product and normalises it before
// it leaves the registers, backward makes draw where the product with W reads it. What both share:
//
// A block keeps its group's W in shared memory, and each of its warps takes 16 rows at a time, all
// columns of them, through stages of its own: after W has come no warp waits for another.
//
// A segment is a number of octets, 8 columns. In the kernels a row's octets are quads, four octets
// each, and one octet that stands alone. Of a quad the lane (g, q), kernels/base/mma.cuh, has octet
// q: the columns that its fragments of sums, or of A, stand for are chosen so. Fragment columns
// (or, of A, terms of the sum) 8 j + 2q, + 1 with j = 0 to 3 stand for 8 q + 2 j, + 1; that is how
// W's rows lie in shared memory. So memory is accessed 16 bytes a lane, 64 a row, and registers
// are operands and results as they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/linear_rmsnorm/linear_rmsnorm.h"

namespace fm {

// Return false, having launched nothing, where the shape or the alignment does not allow it.
template <class T>
bool linear_rmsnorm_forward_fused(CudaQueue&, const LinearRmsNormForward<T>&);
template <class T>
bool linear_rmsnorm_backward_fused(CudaQueue&, const LinearRmsNormBackward<T>&);

namespace linear_rmsnorm {

constexpr int kTileRows = 16;  // of a warp
constexpr int kOctet = 8;      // columns; 16 bytes
constexpr int kPanel = 64;     // columns of x that lie in shared memory side by side: 128 bytes
constexpr int kSegments = kRmsNormMaxSegments;
constexpr int kMostQuads = 4;

template <int kQuads>
constexpr int kSlots = 32 * kQuads + kOctet;  // columns of a group that there is room for

// What a block knows of its group's columns.
struct Columns {
  int out, groups;
  int end[kSegments];        // columns; past the last segment: out
  float inverse[kSegments];  // 1 / width; past the last segment: 0
  float eps;

  static Columns of(const LinearRmsNormShape& shape) {
    Columns columns{.out = shape.out(),
                    .groups = shape.groups,
                    .end = {},
                    .inverse = {},
                    .eps = static_cast<float>(shape.eps)};
    for (int s = 0, end = 0; s < kSegments; ++s) {
      if (s < shape.segments) {
        end += shape.segment_width[s];
        columns.inverse[s] = 1.0f / static_cast<float>(shape.segment_width[s]);
      }
      columns.end[s] = end;
    }
    return columns;
  }
  __device__ __forceinline__ int segment(int column) const {
    return (column >= end[0]) + (column >= end[1]);
  }
  __device__ __forceinline__ int begin(int segment) const {
    return segment == 0 ? 0 : end[segment - 1];
  }
  // Where a column's weight lies in its segment's [groups, width].
  __device__ __forceinline__ int weight(int group, int segment, int column) const {
    return group * (end[segment] - begin(segment)) + column - begin(segment);
  }
  // Where it lies in a row of all segments' weights, one after another.
  __device__ __forceinline__ int weights(int group, int column) const {
    const int s = segment(column);
    return groups * begin(s) + weight(group, s, column);
  }
};

// Where a group's octets stand. A row of a group begins in the middle of a 32-byte sector or at
// its start; the octet alone is the first one or the last one, so that quads are whole sectors.
template <int kQuads>
struct Octets {
  int first;  // of the first quad

  __device__ Octets(const Columns& columns, int group) : first(group * columns.out / kOctet % 2) {}
  __device__ __forceinline__ int of(int quad, int q) const { return first + quad * 4 + q; }
  __device__ __forceinline__ int alone() const { return first ? 0 : kQuads * 4; }
  // The column whose row of W is row `slot` in shared memory.
  __device__ __forceinline__ int column(int slot) const {
    const int quad = slot / 32, j = slot % 32 / 8, q = slot % 8 / 2;
    return quad < kQuads ? of(quad, q) * kOctet + j * 2 + slot % 2
                         : alone() * kOctet + slot % kOctet;
  }
};

// Chunk c (16 bytes) of a panel's row lies at c ^ swizzle(row). Chunks c of eight rows are in
// different banks, and so are four neighbouring chunks of an even row and the next.
__device__ __forceinline__ constexpr int swizzle(int row) {
  return row % 2 * 4 + row % 8 / 2;
}
template <class T>
__device__ __forceinline__ T* panel_chunk(T* panel, int row, int c) {
  return panel + row * kPanel + (c ^ swizzle(row)) * kOctet;
}

// A number a segment, indexed at run time without leaving the registers.
struct PerSegment {
  float at[kSegments] = {};

  __device__ __forceinline__ void add(int segment, float x) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s)
      if (segment == s) at[s] += x;
  }
  __device__ __forceinline__ float of(int segment) const {
    return segment == 0 ? at[0] : segment == 1 ? at[1] : at[2];
  }
  // Over the four lanes of a row.
  __device__ __forceinline__ void sum_lanes() {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) at[s] = warp_sum(at[s], 4);
  }
};

// Starts copying W of the group into panels of [kSlots, 64]; zeros where there is no column.
template <int kQuads, class T>
__device__ __forceinline__ void fetch_matrix(T* to, const T* from, const Columns& columns,
                                             const Octets<kQuads>& octets, int in) {
  for (int slot = threadIdx.x / kWarp; slot < kSlots<kQuads>; slot += blockDim.x / kWarp) {
    const int column = octets.column(slot);
    const T* const row = from + static_cast<std::int64_t>(column) * in;
    for (int c = threadIdx.x % kWarp; c < in / kOctet; c += kWarp)
      copy_async(panel_chunk(to + c / 8 * kSlots<kQuads> * kPanel, slot, c % 8), row + c * kOctet,
                 column < columns.out);
  }
}

// The group's weights, by column; zeros past the last.
__device__ __forceinline__ void fetch_weights(float* to, int slots, const Columns& columns,
                                              const float* const* from, int group) {
  for (int column = threadIdx.x; column < slots; column += blockDim.x) {
    const int s = columns.segment(column);
    const float* weight = s == 0 ? from[0] : s == 1 ? from[1] : from[2];
    to[column] = column < columns.out ? weight[columns.weight(group, s, column)] : 0.0f;
  }
}

// A group's rows are shared among the warps of its blocks, 16 by 16.
struct Tiles {
  int first, count, step;

  __device__ Tiles(std::int64_t rows, int groups)
      : first(static_cast<int>(threadIdx.x / kWarp * (gridDim.x / groups) + blockIdx.x / groups)),
        count(static_cast<int>(ceil_div(rows, kTileRows))),
        step(static_cast<int>(gridDim.x / groups * (blockDim.x / kWarp))) {}
};

// A warp's tiles of a matrix [rows, groups, in], 64 columns a stage, one after another and ahead of
// their use.
template <class T>
class Stages {
 public:
  static constexpr int kCount = 4;
  static constexpr int kElements = kTileRows * kPanel;

  // `own`: kCount * kElements in shared memory.
  __device__ Stages(T* own, const T* matrix, const LinearRmsNormShape& shape, int group,
                    const Tiles& tiles)
      : own_(own),
        matrix_(matrix + static_cast<std::int64_t>(group) * shape.in),
        rows_(shape.rows),
        stride_(std::int64_t{shape.groups} * shape.in),
        in_(shape.in),
        tile_(tiles.first),
        tiles_(tiles) {}

  // The oldest stage: of the 64 columns that are used next.
  __device__ __forceinline__ T* oldest() const { return own_ + stage_ * kElements; }
  // Starts copying the next columns into it; one group of copies, also where there is nothing left.
  // Four rows of eight chunks a copy.
  __device__ __forceinline__ void refill(bool wanted = true) {
    const int lane = threadIdx.x % kWarp;
    if (wanted && tile_ < tiles_.count) {
      const std::int64_t row = std::int64_t{tile_} * kTileRows + lane / 8;
      const T* from = matrix_ + row * stride_ + column_ + lane % 8 * kOctet;
#pragma unroll
      for (int i = 0; i < kTileRows; i += 4)
        copy_async(panel_chunk(oldest(), i + lane / 8, lane % 8), from + i * stride_,
                   row + i < rows_);
      column_ += kPanel;
      if (column_ == in_) {
        column_ = 0;
        tile_ += tiles_.step;
      }
    }
    commit_copies();
    stage_ = (stage_ + 1) % kCount;
  }

 private:
  T* own_;
  const T* matrix_;
  std::int64_t rows_, stride_;
  int in_, tile_, stage_ = 0, column_ = 0;
  const Tiles& tiles_;
};

// --- On the host

constexpr int kLeastWarps = 4;

// `least_tiles` a multiprocessor: fewer do not pay for W's way there, and are faster in parts.
inline bool shape_fits(const CudaQueue& queue, const LinearRmsNormShape& shape, int least_tiles) {
  const std::int64_t tiles = ceil_div(shape.rows, kTileRows) * shape.groups;
  bool fits = tiles >= std::int64_t{least_tiles} * queue.limits.multiprocessors &&
              shape.rows < (std::int64_t{1} << 34) && shape.in % kPanel == 0 &&
              shape.out() <= kSlots<kMostQuads> &&
              std::int64_t{shape.groups} * std::max(shape.out(), shape.in) < (1 << 20);
  for (int s = 0; s < shape.segments; ++s) fits = fits && shape.segment_width[s] % kOctet == 0;
  return fits;
}
template <class T>
bool aligned(std::initializer_list<const T*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(), [](const T* array) {
    return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
  });
}

// Calls f<quads>() with the fewest that hold the columns: rank 8 and 16, 32 or 64 states are exact.
template <class F>
void with_quads(int out, F&& f) {
  if (out <= kSlots<1>) f.template operator()<1>();
  else if (out <= kSlots<2>) f.template operator()<2>();
  else f.template operator()<kMostQuads>();
}

// As many warps as the shared memory has room for beside `fixed` bytes.
inline int warps_of(const CudaQueue& queue, std::size_t fixed, std::size_t per_warp, int most) {
  const std::size_t limit = queue.limits.shared_bytes_per_block;
  return limit < fixed ? 0
                       : static_cast<int>(std::min((limit - fixed) / per_warp, std::size_t(most)));
}

// Blocks of a group: one a multiprocessor, no more than `most`.
inline int blocks_of(const CudaQueue& queue, const LinearRmsNormShape& shape, std::int64_t most) {
  const int share = std::max(queue.limits.multiprocessors / shape.groups, 1);
  return static_cast<int>(std::min<std::int64_t>(share, most));
}

}  // namespace linear_rmsnorm
}  // namespace fm
