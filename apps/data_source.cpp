#include "apps/data_source.h"

#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "apps/program.h"
#include "engine/io/atomic_file.h"
#include "engine/io/idx.h"
#include "engine/io/md5.h"
#include "kernels/base/check.h"

extern char** environ;

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMnistUrl = "https://ossci-datasets.s3.amazonaws.com/mnist";
constexpr std::array<const char*, 4> kMnistFiles = {
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz"};
constexpr std::array<const char*, 4> kMnistMd5 = {
    "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"};
// Of the pixels alone, train and test, whatever the files were packed with.
constexpr const char* kMnistPixels[] = {"6510e85a72c3e9475c492d559d3770d2",
                                        "240610fa99e73bfa49df8e7fc24d3206"};

constexpr int kMostClasses = 255;  // that a model is conditioned on; MNIST has 10, EMNIST up to 62

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Absolute, without dots and a slash at the end: the same folder is the same text.
fs::path plain(const fs::path& folder) {
  const fs::path normal = fs::absolute(folder).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

IdxSplit idx_split(Split split) {
  return split == Split::train ? IdxSplit::train : IdxSplit::test;
}

DataSet from_idx(const fs::path& folder, Split split) {
  IdxSet set = load_idx(folder, idx_split(split));
  if (!set.images.square())
    fail(Fault::data, "[data] images must be square, got ", set.images.rows, " x ", set.images.cols,
         " (", folder.string(), ")");
  if (set.labels.classes() > kMostClasses)
    fail(Fault::data, "[data] labels must be 0 to ", kMostClasses - 1, ", got ",
         set.labels.classes() - 1, " (", folder.string(), ")");
  DataSet data;
  data.count = set.images.count;
  data.size = static_cast<int>(set.images.rows);
  data.pixels = std::move(set.images.pixels);
  data.labels = std::move(set.labels.values);
  data.origin = folder.string();
  data.fingerprint =
      md5_of({reinterpret_cast<const char*>(data.pixels.data()), data.pixels.size()});
  const bool real = data.fingerprint == kMnistPixels[0] || data.fingerprint == kMnistPixels[1];
  data.name = real ? "mnist" : folder.filename().string();
  return data;
}

// Runs curl on one file; its own messages go to stderr.
void fetch(const std::string& url, const fs::path& to) {
  const std::string output = to.string();
  const std::vector<const char*> arguments = {
      "curl",         "--fail", "--location",        "--silent", "--show-error",
      "--retry",      "2",      "--connect-timeout", "20",       "--output",
      output.c_str(), "--",     url.c_str(),         nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, "curl", nullptr, nullptr,
                                 const_cast<char* const*>(arguments.data()), environ);
  if (error != 0)
    fail(Fault::runtime, "[download] curl could not be started (", std::strerror(error),
         "); install curl");
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  throw_if_interrupted();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    fail(Fault::runtime, "[download] ", url, " could not be fetched (curl ended with ",
         WIFEXITED(status) ? WEXITSTATUS(status) : -1,
         "); check the network, or put the four files into ", to.parent_path().string());
}

std::array<std::string, 4> expected_sums() {
  std::array<std::string, 4> sums;
  std::copy(kMnistMd5.begin(), kMnistMd5.end(), sums.begin());
  const std::string override_sums = from_environment("FM_MNIST_MD5");
  if (override_sums.empty()) return sums;
  std::istringstream text(override_sums);
  std::size_t count = 0;
  for (std::string sum; std::getline(text, sum, ',');)
    if (count++ < sums.size()) sums[count - 1] = sum;
  FM_CHECK(count == sums.size(), "[download] FM_MNIST_MD5 must hold four sums, got ", count);
  return sums;
}

}  // namespace

fs::path mnist_cache() {
  const std::string cache = from_environment("XDG_CACHE_HOME");
  if (fs::path(cache).is_absolute()) return fs::path(cache) / "fm" / "mnist";
  const std::string home = from_environment("HOME");
  return fs::path(home.empty() ? "/tmp" : home) / ".cache" / "fm" / "mnist";
}

DataChoice load_data(const std::string& source, Split split, CpuQueue& queue) {
  const auto folder_set = [&](const fs::path& folder) {
    return DataChoice{from_idx(plain(folder), split), plain(folder).string(), ""};
  };
  if (source == "digits") return {digits_data(queue, split), source, ""};
  if (source != "auto") return folder_set(source);
  std::string looked_in;
  for (const fs::path& folder : {fs::path(from_environment("FM_DATA_DIR")), mnist_cache()}) {
    if (folder.empty()) continue;
    if (find_idx(folder, idx_split(split))) return folder_set(folder);
    looked_in += (looked_in.empty() ? "" : " and ") + folder.string();
  }
  return {
      digits_data(queue, split), "digits",
      "MNIST is not in " + looked_in + ": using the built-in digits (--download fetches MNIST)"};
}

void download_mnist(const fs::path& to) {
  const std::string base =
      from_environment("FM_MNIST_URL").empty() ? kMnistUrl : from_environment("FM_MNIST_URL");
  const auto sums = expected_sums();
  std::error_code error;
  fs::create_directories(to, error);
  if (error)
    fail(Fault::runtime, "[download] ", to.string(), " could not be made: ", error.message());
  for (std::size_t i = 0; i < kMnistFiles.size(); ++i) {
    const fs::path file = to / kMnistFiles[i];
    if (fs::exists(file) && md5_of_file(file) == sums[i]) continue;
    fs::path partial = file;
    partial += ".part";
    fetch(base + "/" + kMnistFiles[i], partial);
    const std::string sum = md5_of_file(partial);
    if (sum != sums[i]) {
      fs::remove(partial, error);
      fail(Fault::data, "[download] ", kMnistFiles[i], " has md5 ", sum, ", expected ", sums[i],
           " (", base, ")");
    }
    fs::rename(partial, file);
  }
}

}  // namespace fm
