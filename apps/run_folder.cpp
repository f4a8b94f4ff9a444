#include "apps/run_folder.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <functional>
#include <sstream>
#include <vector>

#include "engine/io/atomic_file.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWritten[] = {"config.json",  "env.json", "log.jsonl", "metrics.csv",
                                    "summary.json", "ckpt",     "samples"};
constexpr std::int64_t kPointerLimit = 4096, kJsonLimit = 1 << 20;
constexpr std::int64_t kLogLimit = std::int64_t{1} << 32;  // bytes of a log that is trimmed

std::string step_name(std::uint64_t step, const char* extension) {
  char name[64];
  std::snprintf(name, sizeof name, "step-%08llu%s", static_cast<unsigned long long>(step),
                extension);
  return name;
}

std::string text_of(const fs::path& path, std::int64_t limit) {
  const auto bytes = read_file(path, limit);
  return {bytes.begin(), bytes.end()};
}

// Oldest first.
std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.ends_with(".safetensors")) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

void append_line(const fs::path& path, const std::string& line) {
  std::ofstream out(path, std::ios::app | std::ios::binary);
  out << line << '\n' << std::flush;
  if (!out)
    fail(Fault::runtime, "[run] ", path.string(), " could not be written; is the disk full?");
}

void keep_lines(const fs::path& path, const std::function<bool(const std::string&)>& keep) {
  if (!fs::exists(path)) return;
  std::istringstream in(text_of(path, kLogLimit));
  std::string kept;
  for (std::string line; std::getline(in, line);)
    if (keep(line)) kept += line + '\n';
  write_file(path, kept);
}

}  // namespace

void RunFolder::check(Open how) const {
  std::error_code ignored;
  if (!fs::exists(root_, ignored)) return;
  FM_CHECK(fs::is_directory(root_, ignored), "[run] ", root_.string(),
           " must be a folder, got a file");
  FM_CHECK(how != Open::fresh || fs::is_empty(root_, ignored), "[run] ", root_.string(),
           " is not empty; add --resume latest to go on, --overwrite to start anew, or choose "
           "another --out");
}

void RunFolder::open(Open how) const {
  check(how);
  std::error_code error;
  if (how == Open::overwrite)
    for (const char* name : kWritten) fs::remove_all(root_ / name, error);
  for (const char* name : {"ckpt", "samples"}) {
    fs::create_directories(root_ / name, error);
    if (error)
      fail(Fault::runtime, "[run] ", (root_ / name).string(),
           " could not be made: ", error.message());
  }
  for (const fs::path& folder : {root_, root_ / "ckpt", root_ / "samples"})
    remove_stale_temporaries(folder);
}

fs::path RunFolder::checkpoint_path(std::uint64_t step) const {
  return root_ / "ckpt" / step_name(step, ".safetensors");
}
fs::path RunFolder::sample_path(std::uint64_t step) const {
  return root_ / "samples" / step_name(step, ".png");
}

std::optional<fs::path> RunFolder::latest_checkpoint() const {
  const fs::path folder = root_ / "ckpt", pointer = folder / "latest";
  if (fs::exists(pointer)) {
    std::string name = text_of(pointer, kPointerLimit);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    const bool plain = !name.empty() && name.find('/') == std::string::npos;
    if (plain && fs::is_regular_file(folder / name)) return folder / name;
  }
  const auto all = checkpoints_in(folder);
  if (all.empty()) return std::nullopt;
  return all.back();
}

void RunFolder::checkpoint_written(std::uint64_t step, std::int64_t keep) const {
  const fs::path written = checkpoint_path(step);
  write_file(root_ / "ckpt" / "latest", written.filename().string() + "\n");
  if (keep <= 0) return;
  auto all = checkpoints_in(root_ / "ckpt");
  std::erase_if(all, [&](const fs::path& path) { return path >= written; });
  std::error_code error;
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) <= all.size(); ++i)
    fs::remove(all[i], error);
}

void RunFolder::write_json(const std::string& name, const Json& json) const {
  write_file(root_ / name, json.dump(2) + "\n");
}

std::optional<Json> RunFolder::read_json(const std::string& name) const {
  if (!fs::exists(root_ / name)) return std::nullopt;
  const Json json = Json::parse(text_of(root_ / name, kJsonLimit), nullptr, false);
  if (json.is_discarded()) fail(Fault::data, "[run] ", (root_ / name).string(), " is not JSON");
  return json;
}

void RunFolder::append_log(const Json& row) const {
  append_line(root_ / "log.jsonl", row.dump());
}

void RunFolder::append_metrics(const std::string& header, const std::string& row) const {
  const fs::path path = root_ / "metrics.csv";
  if (!fs::exists(path)) append_line(path, header);
  append_line(path, row);
}

void RunFolder::trim(std::uint64_t step, std::uint64_t epoch) const {
  keep_lines(root_ / "log.jsonl", [&](const std::string& line) {
    const Json row =
        Json::parse(line, nullptr, false);  // a line cut short by a crash is dropped, too
    return row.is_object() && row.contains("step") && row["step"].is_number_unsigned() &&
           row["step"].get<std::uint64_t>() <= step;
  });
  bool header = true;
  keep_lines(root_ / "metrics.csv", [&](const std::string& line) {
    if (std::exchange(header, false)) return true;
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), number);
    return error == std::errc() && end != line.data() + line.size() && *end == ',' &&
           number <= epoch;
  });
}

fs::path resolve_checkpoint(const fs::path& path) {
  if (!fs::is_directory(path)) return path;
  if (const auto latest = RunFolder(path).latest_checkpoint()) return *latest;
  fail(Fault::data, "[checkpoint] ", path.string(), " holds no checkpoint (looked in ",
       (path / "ckpt").string(), ")");
}

fs::path run_of(const fs::path& checkpoint) {
  const fs::path folder = checkpoint.parent_path();
  if (folder.filename() != "ckpt") return {};
  return folder.has_parent_path() ? folder.parent_path() : fs::path(".");
}

}  // namespace fm
