// A run's folder: what was resolved, what happened, and everything needed to go on.
//
//   config.json env.json log.jsonl metrics.csv summary.json ckpt/step-*.safetensors ckpt/latest
//   samples/step-*.png
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "engine/io/fields.h"
#include "engine/io/png.h"

namespace fm {

class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

  enum class Open { fresh, overwrite, resume };
  // Throws Fault::usage where the folder is no folder or, for a fresh run, not empty. Changes
  // nothing.
  void check(Open how) const;
  // Makes the folder, checked first; overwrite empties what a run wrote there, resume keeps it.
  // Clears temporaries of dead processes.
  void open(Open how) const;

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path checkpoint_path(std::uint64_t step) const;
  std::filesystem::path sample_path(std::uint64_t step) const;

  // The checkpoint that ckpt/latest names, or the newest step where the pointer is missing or
  // dangles.
  std::optional<std::filesystem::path> latest_checkpoint() const;
  // After checkpoint_path(step) was written: moves the pointer and, of the checkpoints up to it,
  // removes all but the last `keep` (0: none). Later ones belong to a branch that a resume left;
  // they stay until they are written anew.
  void checkpoint_written(std::uint64_t step, std::int64_t keep) const;

  void write_json(const std::string& name, const Json& json) const;
  std::optional<Json> read_json(const std::string& name) const;

  // One row of log.jsonl; one line of metrics.csv (the header is written with the first).
  void append_log(const Json& row) const;
  void append_metrics(const std::string& header, const std::string& row) const;
  // Drops log rows with "step" above `step` and metric rows with an epoch (first column) above
  // `epoch`.
  void trim(std::uint64_t step, std::uint64_t epoch) const;

 private:
  std::filesystem::path root_;
};

// The checkpoint meant by a command line: a file, or a run folder (its latest).
std::filesystem::path resolve_checkpoint(const std::filesystem::path& file_or_run);
// The run folder that a checkpoint file lies in; empty for one that lies elsewhere.
std::filesystem::path run_of(const std::filesystem::path& checkpoint);

}  // namespace fm
