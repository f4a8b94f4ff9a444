// MD5 (RFC 1321): tells a damaged download from a good one. No protection against forgery.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace fm {

// A digest in pieces: update() any number of times, then hex() once.
class Md5 {
 public:
  void update(const void* bytes, std::size_t count);
  // 32 lower-case hexadecimal digits. Ends the digest.
  std::string hex();

 private:
  void absorb(const std::uint8_t* block);  // 64 bytes

  std::array<std::uint32_t, 4> state_{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
  std::array<std::uint8_t, 64> block_{};
  std::uint64_t count_ = 0;  // bytes so far; block_ holds the last count_ % 64
};

std::string md5_of(std::string_view bytes);
std::string md5_of_file(const std::filesystem::path& path);

}  // namespace fm
