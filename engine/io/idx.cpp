#include "engine/io/idx.h"

#include <zlib.h>

#include <algorithm>
#include <string>

#include "engine/io/atomic_file.h"
#include "kernels/base/check.h"

namespace fm {
namespace {

constexpr std::int64_t kLargestFile = std::int64_t{1} << 31;  // packed or not; MNIST has 2^25.5
constexpr std::uint32_t kImagesMagic = 2051, kLabelsMagic = 2049;

template <class... Parts>
[[noreturn]] void refuse(const std::filesystem::path& path, const Parts&... parts) {
  fail(Fault::data, "[idx] ", parts..., " (", path.string(), ")");
}

// Unpacks a gzip file that lies in memory, never more than asked for.
class Gunzip {
 public:
  explicit Gunzip(std::vector<std::uint8_t>& packed) {
    stream_.next_in = packed.data();
    stream_.avail_in = static_cast<uInt>(packed.size());  // kLargestFile fits
    constexpr int kGzipOnly = 16 + MAX_WBITS;
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK)
      fail(Fault::runtime, "[idx] zlib must start, got ", message());
  }
  ~Gunzip() { inflateEnd(&stream_); }
  Gunzip(const Gunzip&) = delete;
  Gunzip& operator=(const Gunzip&) = delete;

  // Appends up to `count` bytes; fewer only at the end of the packed data. Grows with what is
  // really there, whatever a header claims.
  void append(std::vector<std::uint8_t>& out, std::int64_t count,
              const std::filesystem::path& path) {
    constexpr std::int64_t kPiece = 1 << 20;
    while (count > 0 && !ended_) {
      const std::int64_t piece = std::min(count, kPiece);
      const std::size_t before = out.size();
      out.resize(before + static_cast<std::size_t>(piece));
      stream_.next_out = out.data() + before;
      stream_.avail_out = static_cast<uInt>(piece);
      const int status = inflate(&stream_, Z_NO_FLUSH);
      const std::int64_t made = piece - stream_.avail_out;
      out.resize(before + static_cast<std::size_t>(made));
      count -= made;
      ended_ = status == Z_STREAM_END;
      // No output and no input left is Z_BUF_ERROR: the packed data stops short.
      if (status == Z_BUF_ERROR) refuse(path, "gzip data must be whole, got an early end");
      if (status != Z_OK && !ended_) refuse(path, "gzip data must be sound, got ", message());
    }
  }

  std::int64_t left() const { return stream_.avail_in; }

 private:
  const char* message() const { return stream_.msg ? stream_.msg : "an unknown error"; }

  z_stream stream_{};
  bool ended_ = false;
};

std::uint32_t big_endian_word(const std::uint8_t* bytes) {
  return static_cast<std::uint32_t>(bytes[0]) << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

struct Layout {
  std::uint32_t magic;
  std::int64_t header_bytes;
  std::vector<std::int64_t> dims;
  std::int64_t total_bytes;
};

// What the header declares; `bytes` begins with as much of it as the file has.
Layout layout_of(const std::vector<std::uint8_t>& bytes, std::uint32_t magic,
                 const std::filesystem::path& path) {
  const char* kind = magic == kImagesMagic ? "images" : "labels";
  if (bytes.size() < 4) refuse(path, "a file must have a magic, got ", bytes.size(), " bytes");
  const std::uint32_t got = big_endian_word(bytes.data());
  if (got != magic)
    refuse(path, "magic must be ", magic, " (", kind, "), got ", got,
           got == kImagesMagic   ? " (images)"
           : got == kLabelsMagic ? " (labels)"
                                 : "");
  Layout layout{magic, 4 + 4 * static_cast<std::int64_t>(magic & 0xff), {}, 1};
  if (static_cast<std::int64_t>(bytes.size()) < layout.header_bytes)
    refuse(path, "a header must have ", layout.header_bytes, " bytes, got ", bytes.size());
  std::string text;
  bool fits = true;
  for (std::int64_t at = 4; at < layout.header_bytes; at += 4) {
    const std::int64_t extent = big_endian_word(bytes.data() + at);
    layout.dims.push_back(extent);
    text += (text.empty() ? "" : " x ") + std::to_string(extent);
    // Both factors are below 2^32 while it fits.
    fits = fits && extent > 0 && layout.total_bytes * extent <= kLargestFile;
    layout.total_bytes *= fits ? extent : 1;
  }
  layout.total_bytes += layout.header_bytes;
  if (!fits) refuse(path, "dimensions must be 1 to 2 GiB in all, got ", text);
  return layout;
}

struct Content {
  std::vector<std::int64_t> dims;
  std::vector<std::uint8_t> elements;
};

Content read_idx(const std::filesystem::path& path, std::uint32_t magic) {
  std::vector<std::uint8_t> bytes = read_file(path, kLargestFile);
  Layout layout{};
  if (bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b) {
    std::vector<std::uint8_t> packed = std::move(bytes);
    bytes.clear();
    Gunzip gunzip(packed);
    gunzip.append(bytes, 4 + 4 * (magic & 0xff), path);
    layout = layout_of(bytes, magic, path);
    // One byte more than declared: it must not be there, and looking for it checks the CRC.
    const auto have = static_cast<std::int64_t>(bytes.size());
    gunzip.append(bytes, layout.total_bytes - have + 1, path);
    if (gunzip.left() > 0 && static_cast<std::int64_t>(bytes.size()) == layout.total_bytes)
      refuse(path, "gzip data must end the file, got ", gunzip.left(), " bytes after it");
  } else {
    layout = layout_of(bytes, magic, path);
  }
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (size != layout.total_bytes)
    refuse(path, "a file must have the ", layout.total_bytes, " bytes its header declares, got ",
           size > layout.total_bytes ? "more" : std::to_string(size));
  bytes.erase(bytes.begin(), bytes.begin() + layout.header_bytes);
  return {std::move(layout.dims), std::move(bytes)};
}

std::vector<std::filesystem::path> candidates(const std::filesystem::path& folder,
                                              const char* name) {
  const std::filesystem::path path = folder / name;
  return {path, path.string() + ".gz"};
}

std::optional<std::filesystem::path> first_file(const std::vector<std::filesystem::path>& paths) {
  std::error_code ignored;
  for (const auto& path : paths)
    if (std::filesystem::is_regular_file(path, ignored)) return path;
  return std::nullopt;
}

struct Names {
  const char *images, *labels;
};

Names names_of(IdxSplit split) {
  if (split == IdxSplit::train) return {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"};
  return {"t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};
}

std::vector<std::filesystem::path> folders_of(const std::filesystem::path& folder) {
  return {folder, folder / "MNIST" / "raw"};
}

}  // namespace

int IdxLabels::classes() const {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end()) + 1;
}

IdxImages read_idx_images(const std::filesystem::path& path) {
  Content content = read_idx(path, kImagesMagic);
  return {content.dims[0], content.dims[1], content.dims[2], std::move(content.elements)};
}

IdxLabels read_idx_labels(const std::filesystem::path& path) {
  return {read_idx(path, kLabelsMagic).elements};
}

std::optional<IdxPaths> find_idx(const std::filesystem::path& folder, IdxSplit split) {
  const Names names = names_of(split);
  for (const auto& place : folders_of(folder)) {
    const auto images = first_file(candidates(place, names.images));
    const auto labels = first_file(candidates(place, names.labels));
    if (images && labels) return IdxPaths{*images, *labels};
  }
  return std::nullopt;
}

IdxSet load_idx(const std::filesystem::path& folder, IdxSplit split) {
  const std::optional<IdxPaths> paths = find_idx(folder, split);
  if (!paths) {
    const Names names = names_of(split);
    std::string tried;
    for (const auto& place : folders_of(folder))
      for (const char* name : {names.images, names.labels})
        for (const auto& path : candidates(place, name))
          tried += "\n  " + path.string() + (first_file({path}) ? " (found)" : " (not found)");
    fail(Fault::data, "[idx] images and labels must lie in one folder, got none with both:", tried);
  }
  IdxSet set{read_idx_images(paths->images), read_idx_labels(paths->labels)};
  const auto labels = static_cast<std::int64_t>(set.labels.values.size());
  if (set.images.count != labels)
    refuse(paths->labels, "there must be a label an image, got ", set.images.count, " images and ",
           labels, " labels");
  return set;
}

}  // namespace fm
