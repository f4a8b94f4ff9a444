// A run that takes milliseconds: a small IDX set, a small model, and what it leaves on the disk.
#pragma once

#include <zlib.h>

#include <algorithm>

#include "engine/io/fields.h"
#include "engine/io/safetensors.h"
#include "tests/apps/program.h"

namespace fm::test {

inline std::string idx_word(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
  return bytes;
}

inline std::string idx_images(std::uint32_t count, std::uint32_t rows, std::uint32_t columns) {
  std::string bytes = idx_word(2051) + idx_word(count) + idx_word(rows) + idx_word(columns);
  for (std::uint32_t i = 0; i < count * rows * columns; ++i)
    bytes += static_cast<char>(i * i * 31 + i * 7);
  return bytes;
}

inline std::string idx_labels(std::uint32_t count) {
  std::string bytes = idx_word(2049) + idx_word(count);
  for (std::uint32_t i = 0; i < count; ++i) bytes += static_cast<char>(i % 10);
  return bytes;
}

inline std::string gzipped(const std::string& bytes) {
  const TemporaryFolder folder;
  const std::string path = (folder / "packed.gz").string();
  gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())) ==
          static_cast<int>(bytes.size()));
  gzclose(file);
  return get(path);
}

// Writes the train split of a set of MNIST's format; returns its folder as text.
inline std::string put_set(const std::filesystem::path& folder, std::uint32_t count = 64,
                           std::uint32_t side = 28, bool zipped = false) {
  std::filesystem::create_directories(folder);
  const std::string images = idx_images(count, side, side), labels = idx_labels(count);
  const char* suffix = zipped ? ".gz" : "";
  put(folder / (std::string("train-images-idx3-ubyte") + suffix),
      zipped ? gzipped(images) : images);
  put(folder / (std::string("train-labels-idx1-ubyte") + suffix),
      zipped ? gzipped(labels) : labels);
  return folder.string();
}

inline const Arguments kSmallModel = {
    "--blocks", "mamba,attention", "--d-model", "16",      "--heads", "2", "--mlp-hidden",
    "16",       "--d-state",       "2",         "--patch", "7"};
// 64 images in batches of 8: an epoch is 8 steps.
inline const Arguments kSmallTraining = {"--batch",   "8", "--device",       "cpu",
                                         "--threads", "1", "--sample-every", "-1"};

// A flag among `more` replaces the small run's own.
inline Arguments small_run(const std::string& data, const std::filesystem::path& out,
                           const Arguments& more = {}) {
  const Arguments own =
      kSmallModel + kSmallTraining + Arguments{"--data", data, "--out", out.string()};
  Arguments all = more;
  for (std::size_t i = 0; i < own.size(); i += 2)
    if (std::find(more.begin(), more.end(), own[i]) == more.end())
      all = all + Arguments{own[i], own[i + 1]};
  return all;
}

// Trains; must succeed.
inline Outcome train(const Arguments& arguments, const Environment& environment = {}) {
  return expect_end(0, "", "fmtrain", arguments, environment);
}

inline std::filesystem::path checkpoint(const std::filesystem::path& run, int step) {
  char name[64];
  std::snprintf(name, sizeof name, "step-%08d.safetensors", step);
  return run / "ckpt" / name;
}

inline Json json_of(const std::filesystem::path& path) {
  return Json::parse(get(path));
}

// The rows of a run's log.jsonl; none where there is no file yet.
inline std::vector<Json> log_rows(const std::filesystem::path& run) {
  std::vector<Json> rows;
  std::ifstream in(run / "log.jsonl");
  for (std::string line; std::getline(in, line);) rows.push_back(Json::parse(line, nullptr, false));
  return rows;
}

inline std::vector<int> logged_steps(const std::filesystem::path& run) {
  std::vector<int> steps;
  for (const Json& row : log_rows(run)) steps.push_back(row.at("step").get<int>());
  return steps;
}

inline std::size_t rows_so_far(const std::filesystem::path& run) {
  std::ifstream in(run / "log.jsonl");
  std::size_t rows = 0;
  for (std::string line; std::getline(in, line);) ++rows;
  return rows;
}

inline std::string bytes_of(const SafetensorsFile& file, const StoredTensor& tensor) {
  std::string bytes(static_cast<std::size_t>(tensor.bytes), '\0');
  file.read_bytes(tensor, bytes.data());
  return bytes;
}

// The same tensors, bit for bit, and the same training state.
inline void expect_same_checkpoint(const std::filesystem::path& a, const std::filesystem::path& b) {
  const SafetensorsFile one(a), other(b);
  REQUIRE(one.tensors().size() == other.tensors().size());
  CHECK(one.tensors().size() > 0);
  for (const StoredTensor& tensor : one.tensors()) {
    INFO(tensor.name);
    CHECK(bytes_of(one, tensor) == bytes_of(other, other.at(tensor.name)));
  }
  for (const char* key : {"config", "seed", "step", "epoch", "dtype", "data_cursor", "adam_steps",
                          "loss_scale", "good_steps", "skipped_in_row", "epoch_loss_sum"}) {
    INFO(key);
    CHECK(one.metadata().at(key) == other.metadata().at(key));
  }
}

}  // namespace fm::test
