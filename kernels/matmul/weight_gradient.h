// How the weight gradient of 16-bit operands is cut for our own kernel: tiles of dw, slices of the
// rows. dw = dy^T x has few outputs and a long sum, so it costs what reading dy and x costs; a
// block makes one tile from one slice, and the slices' sums are added afterwards.
//
// All of it is arithmetic on the shape: the workspace is sized by it, without a device.
#pragma once

#include <cstddef>
#include <iterator>

#include "kernels/matmul/linear_shape.h"

namespace fm {

// A block's tile: `a` columns of operand A (dy, or x where `swapped`: the tile is one of dw^T)
// times `b` columns of B. Shared memory holds `stages` stages of `depth` rows of both.
struct WeightTile {
  int a, b;
  int warps_a, warps_b;
  int depth, stages;
  int blocks;   // resident on a multiprocessor, where its shared memory holds them
  int cluster;  // blocks that add up their tiles before they go to memory, where there are clusters
  bool swapped;
  bool bias;  // sums dy's columns, too
};

// In order of preference where two read equally much. 256 x 136 is all of x_proj's dw of one
// direction; 8 columns are for those of dt_proj and the 4 of patches; the last tile is for few
// rows.
inline constexpr WeightTile kWeightTiles[] = {
    {128, 128, 2, 4, 32, 4, 1, 1, false, true}, {256, 128, 4, 2, 32, 3, 1, 1, false, true},
    {128, 256, 2, 4, 32, 3, 1, 1, false, true}, {256, 136, 8, 1, 32, 3, 1, 2, true, false},
    {128, 8, 4, 1, 64, 4, 3, 1, false, true},   {128, 8, 4, 1, 64, 4, 3, 1, true, true},
    {64, 64, 2, 2, 32, 4, 4, 1, false, true},
};
constexpr int kLongTiles = 6;  // the first ones, for long sums
constexpr int kFewRows = 512;  // up to here, the last one

struct WeightPlan {
  int tile;  // of kWeightTiles; -1: a product for cuBLASLt
  int cluster;
  int tiles_a, tiles_b;
  RowSplit slices;  // a multiple of the cluster; the last ones may be empty
};

// Tiles of a plan, all groups'.
inline std::int64_t weight_tiles(const LinearShape& s, const WeightPlan& plan) {
  return std::int64_t{s.groups} * plan.tiles_a * plan.tiles_b;
}

// As many slices as give every multiprocessor its blocks.
inline WeightPlan weight_plan(const LinearShape& s, int tile, int multiprocessors, bool clusters) {
  const WeightTile& t = kWeightTiles[tile];
  const int a = t.swapped ? s.in : s.out, b = t.swapped ? s.out : s.in;
  const int cluster = clusters ? t.cluster : 1;
  WeightPlan plan{tile, cluster, (a - 1) / t.a + 1, (b - 1) / t.b + 1, {}};
  const std::int64_t blocks = std::int64_t{multiprocessors} * t.blocks / cluster;
  const std::int64_t most = std::max<std::int64_t>(blocks / weight_tiles(s, plan), 1) * cluster;
  const RowSplit even = split_rows(s.rows, most, 2 * t.depth);
  plan.slices.rows = (even.rows + t.depth - 1) / t.depth * t.depth;
  const std::int64_t count = (s.rows + plan.slices.rows - 1) / plan.slices.rows;
  plan.slices.count = (count + cluster - 1) / cluster * cluster;
  return plan;
}

// Operations a byte, above which a product is bound by the tensor cores, and cuBLASLt's. A row
// costs 2 in out operations and 2 (in + out) bytes.
constexpr std::int64_t kMostIntensity = 128;

// More tiles than this, and slices are not what fills the device.
constexpr std::int64_t kMostTiles = 128;

// The tile that reads least.
inline WeightPlan weight_plan(const LinearShape& s, int multiprocessors, bool clusters) {
  constexpr int kEven = 4;  // elements: rows of 8 bytes
  const WeightPlan none{-1, 1, 0, 0, {}};
  const std::int64_t in = s.in, out = s.out;
  const bool even = in % kEven == 0 && out % kEven == 0 && s.x_stride % kEven == 0 &&
                    s.y_stride % kEven == 0 && s.x_group % kEven == 0 && s.y_group % kEven == 0;
  if (!even || in * out > kMostIntensity * (in + out)) return none;
  if (s.rows <= kFewRows) {
    const WeightPlan plan = weight_plan(s, kLongTiles, multiprocessors, clusters);
    return weight_tiles(s, plan) <= kMostTiles ? plan : none;
  }
  WeightPlan best = none;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < kLongTiles; ++i) {
    const WeightTile& t = kWeightTiles[i];
    const WeightPlan plan = weight_plan(s, i, multiprocessors, clusters);
    const std::int64_t read = weight_tiles(s, plan) * (t.a + t.b);
    if (read >= least || weight_tiles(s, plan) > kMostTiles) continue;
    best = plan;
    least = read;
  }
  return best;
}

// Hopper's kernel. A pair of blocks has one slice of the rows, the same `b` columns of B and two
// tiles of A side by side. Few outputs a block are few slices: the larger the tiles, the more the
// slices' sums cost; the smaller, the more often A and B come from the L2 cache.
struct HopperTile {
  int b;
  bool swapped;  // as a WeightTile's; the other one sums dy's columns, too
};
inline constexpr HopperTile kHopperTiles[] = {{128, false}, {136, true}};
constexpr int kHopperA = 64, kHopperPair = 2, kHopperDepth = 64;

struct HopperPlan {
  int tile;  // of kHopperTiles; -1: not for this kernel
  int tiles_a, tiles_b, slices;
};

inline std::int64_t weight_tiles(const LinearShape& s, const HopperPlan& plan) {
  return std::int64_t{s.groups} * plan.tiles_a * plan.tiles_b;
}

// The tile that reads least, if that is at most twice what there is: up to there DRAM binds.
inline HopperPlan hopper_plan(const LinearShape& s, int multiprocessors) {
  constexpr int kEven = 8;  // elements: the copy engine's 16 bytes
  constexpr int kFewest = 64, kManyRows = 4096;
  const HopperPlan none{-1, 0, 0, 0};
  const std::int64_t in = s.in, out = s.out;
  const bool even = in % kEven == 0 && out % kEven == 0 && s.x_stride % kEven == 0 &&
                    s.y_stride % kEven == 0 && s.x_group % kEven == 0 && s.y_group % kEven == 0;
  if (!even || std::min(in, out) < kFewest || s.rows < kManyRows ||
      s.rows > std::numeric_limits<int>::max() - kHopperDepth ||
      in * out > kMostIntensity * (in + out))
    return none;
  HopperPlan best = none;
  std::int64_t least = 2 * (in + out) + 1;
  for (int i = 0; i < static_cast<int>(std::size(kHopperTiles)); ++i) {
    const HopperTile& t = kHopperTiles[i];
    const std::int64_t a = t.swapped ? in : out, b = t.swapped ? out : in;
    const std::int64_t pairs = (a - 1) / (kHopperPair * kHopperA) + 1, tiles_b = (b - 1) / t.b + 1;
    const std::int64_t read = pairs * tiles_b * (kHopperPair * kHopperA + t.b);
    if (read >= least) continue;
    best = {i, static_cast<int>(kHopperPair * pairs), static_cast<int>(tiles_b), 0};
    least = read;
  }
  if (best.tile < 0) return none;
  const std::int64_t blocks = multiprocessors / kHopperPair * kHopperPair;
  const std::int64_t slices = blocks / weight_tiles(s, best);
  const std::int64_t most = (s.rows - 1) / kHopperDepth + 1;
  best.slices = static_cast<int>(std::min(slices, most));
  return slices > 1 ? best : none;
}

// The part of linear_backward_weight_workspace that CUDA needs. Devices with more multiprocessors
// than this leave some of them idle.
constexpr int kMostMultiprocessors = 160;

inline std::size_t cuda_weight_workspace(const LinearShape& s) {
  std::int64_t floats = cuda_column_split(s).count * s.groups * s.out;
  for (const bool clusters : {false, true}) {
    const WeightPlan plan = weight_plan(s, kMostMultiprocessors, clusters);
    if (plan.tile < 0) continue;
    const WeightTile& t = kWeightTiles[plan.tile];
    floats = std::max(floats, plan.slices.count / plan.cluster * weight_tiles(s, plan) * t.a * t.b +
                                  plan.slices.count * s.groups * s.out);
  }
  const HopperPlan hopper = hopper_plan(s, kMostMultiprocessors);
  if (hopper.tile >= 0)
    floats = std::max(
        floats, hopper.slices * (weight_tiles(s, hopper) * kHopperA * kHopperTiles[hopper.tile].b +
                                 std::int64_t{s.groups} * s.out));
  return static_cast<std::size_t>(floats) * sizeof(float);
}

}  // namespace fm
