#include "engine/io/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string>
#include <system_error>
#include <utility>

#include "kernels/base/check.h"

namespace fm {
namespace {

constexpr std::string_view kSuffix = ".tmp.";
// Linux moves at most 2^31 - 4096 bytes a call; smaller pieces also stay interruptible.
constexpr std::int64_t kLargestTransfer = std::int64_t{1} << 30;

std::string reason() {
  return std::generic_category().message(errno);
}

[[noreturn]] void not_readable(const std::filesystem::path& path, const std::string& got) {
  fail(Fault::data, "[file] must be readable, got ", got, " (", path.string(), ")");
}

[[noreturn]] void not_writable(const std::filesystem::path& path, const std::string& got) {
  fail(Fault::runtime, "[file] must be writable, got ", got, " (", path.string(), ")");
}

const char* kind_of(mode_t mode) {
  return S_ISDIR(mode) ? "a folder" : S_ISFIFO(mode) ? "a pipe" : "a device or socket";
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// A rename is on the disk once its folder is.
void flush_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) not_writable(folder, reason());
  // EINVAL: a file system that has no such thing, where nothing can be done.
  const bool flushed = ::fsync(descriptor) == 0 || errno == EINVAL;
  const std::string got = flushed ? "" : reason();
  ::close(descriptor);
  if (!flushed) not_writable(folder, got);
}

// The process that wrote a temporary of this name; 0 where it is not the name of one.
pid_t writer_of(const std::string& name) {
  const std::size_t at = name.rfind(kSuffix);
  if (at == std::string::npos || at == 0) return 0;
  const char* first = name.data() + at + kSuffix.size();
  const char* last = name.data() + name.size();
  int pid = 0;
  const auto [end, error] = std::from_chars(first, last, pid);
  return error == std::errc() && end == last && pid > 0 ? pid : 0;
}

}  // namespace

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a pipe by mistake must not wait for its writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor_ < 0) not_readable(path_, reason());
  struct stat info {};
  std::string got;
  if (::fstat(descriptor_, &info) != 0) got = reason();
  else if (!S_ISREG(info.st_mode)) got = kind_of(info.st_mode);
  if (!got.empty()) {
    ::close(descriptor_);
    not_readable(path_, got);
  }
  size_ = info.st_size;
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void InputFile::read(std::int64_t offset, void* to, std::int64_t count) const {
  if (offset < 0 || count < 0 || offset > size_ || count > size_ - offset)
    fail(Fault::data, "[file] must hold ", count, " bytes at ", offset, ", got ", size_,
         " bytes in all (", path_.string(), ")");
  auto* out = static_cast<char*>(to);
  while (count > 0) {
    const auto piece = static_cast<std::size_t>(std::min(count, kLargestTransfer));
    const ssize_t got = ::pread(descriptor_, out, piece, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) not_readable(path_, reason());
    if (got == 0) not_readable(path_, "an end of file: it has shrunk since it was opened");
    out += got;
    offset += got;
    count -= got;
  }
}

std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::int64_t limit) {
  const InputFile file(path);
  if (file.size() > limit)
    fail(Fault::data, "[file] must have at most ", limit, " bytes, got ", file.size(), " (",
         path.string(), ")");
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(file.size()));
  file.read(0, bytes.data(), file.size());
  return bytes;
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  struct stat info {};
  if (::lstat(path_.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
    not_writable(path_, kind_of(info.st_mode));
  temporary_ = path_;
  temporary_ += std::string(kSuffix) + std::to_string(::getpid());
  const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC;
  descriptor_ = ::open(temporary_.c_str(), flags, 0666);
  if (descriptor_ < 0) not_writable(temporary_, reason());
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* bytes, std::size_t count) {
  FM_CHECK(descriptor_ >= 0, "[file] must be written before commit (", path_.string(), ")");
  const auto* from = static_cast<const char*>(bytes);
  while (count > 0) {
    const std::size_t piece = std::min(count, static_cast<std::size_t>(kLargestTransfer));
    const ssize_t done = ::write(descriptor_, from, piece);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) not_writable(temporary_, reason());
    from += done;
    count -= static_cast<std::size_t>(done);
  }
}

void AtomicFile::commit() {
  FM_CHECK(descriptor_ >= 0, "[file] must be committed once (", path_.string(), ")");
  if (::fsync(descriptor_) != 0 && errno != EINVAL) not_writable(temporary_, reason());
  // Closed even where close reports an error: a second close could hit somebody else's file.
  if (::close(std::exchange(descriptor_, -1)) != 0) not_writable(temporary_, reason());
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) not_writable(path_, reason());
  committed_ = true;
  flush_folder(folder_of(path_));
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

int remove_stale_temporaries(const std::filesystem::path& folder) {
  // A file that vanishes meanwhile, or may not be removed, is no reason to stop a run.
  std::error_code ignored;
  std::vector<std::filesystem::path> stale;
  std::filesystem::directory_iterator entry(folder, ignored);
  for (const std::filesystem::directory_iterator end; entry != end; entry.increment(ignored)) {
    const pid_t writer = writer_of(entry->path().filename().string());
    const bool gone = writer > 0 && ::kill(writer, 0) != 0 && errno == ESRCH;
    if (gone && std::filesystem::is_regular_file(entry->symlink_status(ignored)))
      stale.push_back(entry->path());
  }
  int removed = 0;
  for (const auto& path : stale) removed += std::filesystem::remove(path, ignored) ? 1 : 0;
  return removed;
}

}  // namespace fm
