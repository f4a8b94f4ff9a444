// RMSNorm of up to three segments of a row: x / sqrt(mean(x^2) + eps) * weight, each segment by
// itself.
//
// The rows are [rows, groups, width], dense; a segment covers columns [begin, begin + width) of
// every (row, group) and has weights [groups, width]. Segments do not overlap; columns in no
// segment are left alone. Backward reads x again; nothing else is saved. With
// r = 1 / sqrt(mean(x^2) + eps) and xh = x r:
//   dx = r (w dy - xh mean(w dy xh)),  dweight = sum over rows of dy xh
// Statistics are in acc_t<T>. Source: Zhang and Sennrich 2019, "Root Mean Square Layer
// Normalization". T is double or float on the CPU, float, f16 or bf16 on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

constexpr int kRmsNormMaxSegments = 3;

struct RmsNormShape {
  std::int64_t rows;
  int groups, width;
  int segments;                            // 1 to 3
  int begin[kRmsNormMaxSegments];          // columns
  int segment_width[kRmsNormMaxSegments];  // any number
  double eps;                              // positive

  // Weights of one segment, and of all: the columns of a row of the workspace, segment by segment.
  std::int64_t weights(int segment) const {
    return static_cast<std::int64_t>(groups) * segment_width[segment];
  }
  std::int64_t weights() const {
    std::int64_t sum = 0;
    for (int s = 0; s < segments; ++s) sum += weights(s);
    return sum;
  }
};

template <class T>
struct RmsNormForward {
  RmsNormShape shape;
  const T* x;
  const acc_t<T>* weight[kRmsNormMaxSegments];  // [groups, segment_width]
  T* y;
};

template <class T>
struct RmsNormBackward {
  RmsNormShape shape;
  const T* x;
  const acc_t<T>* weight[kRmsNormMaxSegments];
  const T* dy;
  T* dx;                                   // overwritten; may be dy
  acc_t<T>* dweight[kRmsNormMaxSegments];  // overwritten
  void* workspace;                         // rmsnorm_backward_workspace<T>(shape) bytes
};

// Throws Fault::usage for shapes outside the contract; every entry point calls it.
void rmsnorm_check(const RmsNormShape&);

// The weight gradients are summed in two stages: over the rows of a piece, then over the pieces.
// The pieces depend on the number of rows alone; the workspace is [pieces, weights()].
constexpr std::int64_t rmsnorm_rows_per_piece(std::int64_t rows) {
  constexpr std::int64_t kMaxPieces = 264, kMultiple = 16;
  const std::int64_t share = (rows + kMaxPieces - 1) / kMaxPieces;
  return (share + kMultiple - 1) / kMultiple * kMultiple;
}
constexpr std::int64_t rmsnorm_pieces(std::int64_t rows) {
  return (rows + rmsnorm_rows_per_piece(rows) - 1) / rmsnorm_rows_per_piece(rows);
}

template <class T>
std::size_t rmsnorm_backward_workspace(const RmsNormShape&);

template <class T>
void rmsnorm_forward(CpuQueue&, const RmsNormForward<T>&);
template <class T>
void rmsnorm_forward(CudaQueue&, const RmsNormForward<T>&);
template <class T>
void rmsnorm_backward(CpuQueue&, const RmsNormBackward<T>&);
template <class T>
void rmsnorm_backward(CudaQueue&, const RmsNormBackward<T>&);

}  // namespace fm
