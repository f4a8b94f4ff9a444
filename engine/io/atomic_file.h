// Files on disk: reads that are bounded, writes that are whole or not there at all.
//
// What cannot be read is Fault::data, what cannot be written Fault::runtime; both name the path and
// the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace fm {

// A regular file open for reading. Its size is taken once; a read past it, or a file that has
// shrunk since, is Fault::data.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t size() const { return size_; }
  // Bytes [offset, offset + count), all of them. Safe from several threads.
  void read(std::int64_t offset, void* to, std::int64_t count) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

// The whole file; Fault::data where it has more than `limit` bytes.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::int64_t limit);

// Collects bytes in `path.tmp.<pid>` beside `path`; commit() flushes them to the disk and renames
// over `path`, which a reader therefore sees old or new, never half. Without commit() the temporary
// is removed. One writer a path in a process. Refuses to replace anything but a file or a link.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* bytes, std::size_t count);
  void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

// The whole file at once, through AtomicFile.
void write_file(const std::filesystem::path& path, std::string_view bytes);

// Removes from `folder` the temporaries of AtomicFile whose process (of this machine) is gone;
// returns how many. A folder that is not there has none.
int remove_stale_temporaries(const std::filesystem::path& folder);

}  // namespace fm
