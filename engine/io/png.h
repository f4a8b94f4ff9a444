// PNG images of 8 bits a channel, with text chunks, through libpng.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fm {

struct Image {
  std::int64_t width = 0, height = 0;
  int channels = 1;                  // 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA
  std::vector<std::uint8_t> pixels;  // [height, width, channels]
};

// Text chunks: key (1 to 79 printable ASCII characters) -> value (UTF-8 without NUL).
using PngText = std::map<std::string, std::string>;

// The bytes of a PNG file.
std::string encode_png(const Image& image, const PngText& text = {});
// Written whole or not at all.
void write_png(const std::filesystem::path& path, const Image& image, const PngText& text = {});

struct DecodedPng {
  Image image;
  PngText text;
};

// Any PNG up to 64 M pixels; palettes are looked up, other depths brought to 8 bits. Fault::data
// for anything else.
DecodedPng decode_png(std::string_view bytes, const std::filesystem::path& path = "memory");
DecodedPng read_png(const std::filesystem::path& path);

}  // namespace fm
