// What both backends read off a LinearShape: its defaults filled in, its rules, and how the weight
// gradient's long sum over rows is split. The splits depend on the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/matmul/matmul.h"

namespace fm {

// Blocks of a matrix [rows, width], `groups` of them: no two elements may share an address.
inline void check_placement(const char* name, const LinearShape& s, std::int64_t width,
                            std::int64_t stride, std::int64_t group) {
  const bool side_by_side = group >= width && stride >= (s.groups - 1) * group + width;
  const bool stacked = stride >= width && group >= (s.rows - 1) * stride + width;
  FM_CHECK(s.groups == 1 ? stride >= width : side_by_side || stacked, "[linear] the rows of ", name,
           " must not overlap, got row stride ", stride, " and group stride ", group, " for ",
           s.groups, " group(s) of [", s.rows, ", ", width, "]");
  FM_CHECK(stride <= std::numeric_limits<int>::max(),
           "[linear] a row stride must fit in 32 bits, got ", stride, " for ", name);
}

// The shape with its defaults filled in; throws where it is outside the contract.
inline LinearShape checked(LinearShape s) {
  FM_CHECK(s.rows > 0 && s.in > 0 && s.out > 0 && s.groups > 0,
           "[linear] sizes must be positive, got rows ", s.rows, ", in ", s.in, ", out ", s.out,
           ", groups ", s.groups);
  FM_CHECK(s.groups <= 65535, "[linear] at most 65535 groups, got ", s.groups);
  if (s.x_stride == 0) s.x_stride = std::int64_t{s.groups} * s.in;
  if (s.y_stride == 0) s.y_stride = std::int64_t{s.groups} * s.out;
  if (s.x_group == 0) s.x_group = s.in;
  if (s.y_group == 0) s.y_group = s.out;
  check_placement("x", s, s.in, s.x_stride, s.x_group);
  check_placement("y", s, s.out, s.y_stride, s.y_group);
  return s;
}

// A sum over rows in `count` parts of `rows` rows (the last ones may be shorter or empty).
struct RowSplit {
  std::int64_t count, rows;
};

constexpr RowSplit split_rows(std::int64_t rows, std::int64_t wanted, std::int64_t fewest_rows) {
  const std::int64_t count = std::clamp<std::int64_t>(
      std::min(wanted, (rows + fewest_rows - 1) / fewest_rows), 1, std::max<std::int64_t>(rows, 1));
  return {count, (rows + count - 1) / count};
}

// CPU: pieces of one group, kOutBlock outputs and one part of the rows; about 32 of them keep the
// threads of a large machine busy, and the copies of dw stay a few megabytes.
constexpr int kOutBlock = 64;
inline RowSplit cpu_weight_split(const LinearShape& s) {
  const std::int64_t blocks = std::int64_t{s.groups} * ((s.out + kOutBlock - 1) / kOutBlock);
  return split_rows(s.rows, (32 + blocks - 1) / blocks, 256);
}

// CUDA: parts of the column sums of dy; 256 parts fill any GPU.
inline RowSplit cuda_column_split(const LinearShape& s) {
  return split_rows(s.rows, 256, 64);
}

}  // namespace fm
