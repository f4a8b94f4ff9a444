// IDX files, the format of MNIST and the sets that share it: 8-bit images and their labels, plain
// or gzipped. Whatever is not exactly that is Fault::data.
//
// Layout, big-endian: u32 magic (2051 images, 2049 labels), a u32 a dimension, one byte an element
// and nothing after it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace fm {

struct IdxImages {
  std::int64_t count = 0, rows = 0, cols = 0;
  std::vector<std::uint8_t> pixels;  // [count, rows, cols]
  bool square() const { return rows == cols; }
};

struct IdxLabels {
  std::vector<std::uint8_t> values;  // [count]
  int classes() const;               // the largest label + 1
};

IdxImages read_idx_images(const std::filesystem::path& path);
IdxLabels read_idx_labels(const std::filesystem::path& path);

// The two halves of a set, under MNIST's names: train-*, t10k-*.
enum class IdxSplit { train, test };

struct IdxPaths {
  std::filesystem::path images, labels;
};

// Where a split lies: its two files, each plain or .gz, in `folder` or else in folder/MNIST/raw.
std::optional<IdxPaths> find_idx(const std::filesystem::path& folder, IdxSplit split);

struct IdxSet {
  IdxImages images;
  IdxLabels labels;  // as many as images
};

// Finds and reads a split; where it is not there the message names every path tried.
IdxSet load_idx(const std::filesystem::path& folder, IdxSplit split);

}  // namespace fm
