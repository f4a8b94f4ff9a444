#include "engine/io/png.h"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "engine/io/atomic_file.h"
#include "kernels/base/check.h"

// libpng reports errors by longjmp. It may cross only frames that own nothing, so each conversation
// with libpng stands in a function of its own with plain locals; all memory is held by its caller.

namespace fm {
namespace {

constexpr std::int64_t kLargestSide = 1 << 16;
constexpr std::int64_t kMostPixels = std::int64_t{1} << 26;
constexpr std::int64_t kLargestFile = std::int64_t{1} << 30;
constexpr int kColorTypes[] = {PNG_COLOR_TYPE_GRAY, PNG_COLOR_TYPE_GRAY_ALPHA, PNG_COLOR_TYPE_RGB,
                               PNG_COLOR_TYPE_RGB_ALPHA};

struct Report {
  char text[160] = "out of memory";
};

void on_error(png_structp png, png_const_charp message) {
  auto& report = *static_cast<Report*>(png_get_error_ptr(png));
  std::strncpy(report.text, message, sizeof(report.text) - 1);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void append(png_structp png, png_bytep bytes, png_size_t count) {
  bool stored = true;
  try {
    static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<char*>(bytes), count);
  } catch (const std::exception&) {
    stored = false;  // a C++ exception must not run through libpng's frames
  }
  if (!stored) png_error(png, "out of memory");
}

void flush(png_structp) {}

struct Writing {
  Report report;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &report, on_error, on_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  ~Writing() { png_destroy_write_struct(&png, &info); }
};

bool encode(Writing& to, std::string* out, const Image& image, png_textp text, int texts) {
  if (!to.info || setjmp(png_jmpbuf(to.png))) return false;
  png_set_write_fn(to.png, out, append, flush);
  png_set_IHDR(to.png, to.info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), 8, kColorTypes[image.channels - 1],
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_text(to.png, to.info, text, texts);
  png_write_info(to.png, to.info);
  for (std::int64_t y = 0; y < image.height; ++y)
    png_write_row(to.png, image.pixels.data() + y * image.width * image.channels);
  png_write_end(to.png, to.info);
  return true;
}

struct Reading {
  std::string_view left;  // not yet read
  Report report;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &report, on_error, on_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  ~Reading() { png_destroy_read_struct(&png, &info, nullptr); }
};

void take(png_structp png, png_bytep to, png_size_t count) {
  std::string_view& left = static_cast<Reading*>(png_get_io_ptr(png))->left;
  if (count > left.size()) png_error(png, "an early end");
  std::memcpy(to, left.data(), count);
  left.remove_prefix(count);
}

bool decode_header(Reading& from, Image* image, int* passes) {
  if (!from.info || setjmp(png_jmpbuf(from.png))) return false;
  png_set_read_fn(from.png, &from, take);
  png_set_user_limits(from.png, kLargestSide, kLargestSide);
  png_set_chunk_malloc_max(from.png, 1 << 20);
  png_read_info(from.png, from.info);
  png_set_expand(from.png);
  png_set_strip_16(from.png);
  *passes = png_set_interlace_handling(from.png);
  png_read_update_info(from.png, from.info);
  image->width = png_get_image_width(from.png, from.info);
  image->height = png_get_image_height(from.png, from.info);
  image->channels = png_get_channels(from.png, from.info);
  return true;
}

bool decode_pixels(Reading& from, Image* image, int passes) {
  if (setjmp(png_jmpbuf(from.png))) return false;
  for (int pass = 0; pass < passes; ++pass)
    for (std::int64_t y = 0; y < image->height; ++y)
      png_read_row(from.png, image->pixels.data() + y * image->width * image->channels, nullptr);
  png_read_end(from.png, from.info);
  return true;
}

bool is_key(const std::string& key) {
  const auto visible = [](char c) { return c >= 0x20 && c <= 0x7e; };
  return !key.empty() && key.size() <= 79 && std::all_of(key.begin(), key.end(), visible) &&
         key.front() != ' ' && key.back() != ' ' && key.find("  ") == std::string::npos;
}

}  // namespace

std::string encode_png(const Image& image, const PngText& text) {
  FM_CHECK(image.channels >= 1 && image.channels <= 4, "[png] channels must be 1 to 4, got ",
           image.channels);
  FM_CHECK(image.width > 0 && image.height > 0 && image.width <= kLargestSide &&
               image.height <= kLargestSide && image.width * image.height <= kMostPixels,
           "[png] an image must have 1 to 65536 pixels a side and at most 2^26 in all, got ",
           image.width, " x ", image.height);
  FM_CHECK(
      static_cast<std::int64_t>(image.pixels.size()) == image.width * image.height * image.channels,
      "[png] pixels must be height x width x channels, got ", image.pixels.size(), " for ",
      image.height, " x ", image.width, " x ", image.channels);
  std::vector<png_text> chunks;
  for (const auto& [key, value] : text) {
    FM_CHECK(is_key(key), "[png] a text key must be 1 to 79 printable ASCII characters, got '", key,
             "'");
    FM_CHECK(value.find('\0') == std::string::npos, "[png] text must be without NUL, got one in '",
             key, "'");
    const bool ascii =
        std::all_of(value.begin(), value.end(), [](unsigned char c) { return c < 0x80; });
    png_text chunk{};
    chunk.compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    chunk.key = const_cast<png_charp>(key.c_str());  // libpng copies both
    chunk.text = const_cast<png_charp>(value.c_str());
    chunk.text_length = ascii ? value.size() : 0;
    chunk.itxt_length = ascii ? 0 : value.size();
    chunks.push_back(chunk);
  }
  std::string bytes;
  Writing to;
  if (!encode(to, &bytes, image, chunks.data(), static_cast<int>(chunks.size())))
    fail(Fault::runtime, "[png] encoding must succeed, got ", to.report.text);
  return bytes;
}

void write_png(const std::filesystem::path& path, const Image& image, const PngText& text) {
  write_file(path, encode_png(image, text));
}

DecodedPng decode_png(std::string_view bytes, const std::filesystem::path& path) {
  DecodedPng decoded;
  Image& image = decoded.image;
  Reading from;
  from.left = bytes;
  const auto refuse = [&](const auto&... got) {
    fail(Fault::data, "[png] a file must be a sound PNG, got ", got..., " (", path.string(), ")");
  };
  int passes = 1;
  if (!decode_header(from, &image, &passes)) refuse(from.report.text);
  if (image.width * image.height > kMostPixels) refuse(image.width, " x ", image.height, " pixels");
  image.pixels.resize(static_cast<std::size_t>(image.width * image.height * image.channels));
  if (!decode_pixels(from, &image, passes)) refuse(from.report.text);

  png_textp chunks = nullptr;
  int count = 0;
  png_get_text(from.png, from.info, &chunks, &count);
  for (int i = 0; i < count; ++i) decoded.text[chunks[i].key] = chunks[i].text;
  return decoded;
}

DecodedPng read_png(const std::filesystem::path& path) {
  const std::vector<std::uint8_t> bytes = read_file(path, kLargestFile);
  return decode_png({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

}  // namespace fm
