#include "engine/io/md5.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "engine/io/atomic_file.h"

namespace fm {
namespace {

// floor(2^32 |sin(i + 1)|), RFC 1321 section 3.4.
constexpr std::uint32_t kSine[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
// Rotations, four a round.
constexpr int kRotation[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

std::uint32_t little_endian_word(const std::uint8_t* bytes) {
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
}

}  // namespace

void Md5::absorb(const std::uint8_t* block) {
  std::uint32_t word[16];
  for (int i = 0; i < 16; ++i) word[i] = little_endian_word(block + 4 * i);
  auto [a, b, c, d] = state_;
  for (int i = 0; i < 64; ++i) {
    const int round = i / 16;
    std::uint32_t mixed = 0;
    int k = 0;
    switch (round) {
      case 0: mixed = (b & c) | (~b & d), k = i; break;
      case 1: mixed = (b & d) | (c & ~d), k = (5 * i + 1) % 16; break;
      case 2: mixed = b ^ c ^ d, k = (3 * i + 5) % 16; break;
      default: mixed = c ^ (b | ~d), k = 7 * i % 16; break;
    }
    const std::uint32_t sum = a + mixed + word[k] + kSine[i];
    a = d, d = c, c = b;
    b += std::rotl(sum, kRotation[round][i % 4]);
  }
  state_[0] += a, state_[1] += b, state_[2] += c, state_[3] += d;
}

void Md5::update(const void* bytes, std::size_t count) {
  const auto* from = static_cast<const std::uint8_t*>(bytes);
  while (count > 0) {
    const std::size_t used = count_ % 64;
    const std::size_t piece = std::min(count, 64 - used);
    std::memcpy(block_.data() + used, from, piece);
    count_ += piece, from += piece, count -= piece;
    if (used + piece == 64) absorb(block_.data());
  }
}

std::string Md5::hex() {
  const std::uint64_t bits = 8 * count_;
  // One bit, zeros up to 8 bytes before the end of a block, the length.
  std::uint8_t padding[72] = {0x80};
  const std::size_t zeros_end = (count_ % 64 < 56 ? 56 : 120) - count_ % 64;
  for (int i = 0; i < 8; ++i) padding[zeros_end + i] = static_cast<std::uint8_t>(bits >> 8 * i);
  update(padding, zeros_end + 8);

  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint32_t word : state_) {
    for (int shift = 0; shift < 32; shift += 8) {
      text += kDigits[word >> (shift + 4) & 15];
      text += kDigits[word >> shift & 15];
    }
  }
  return text;
}

std::string md5_of(std::string_view bytes) {
  Md5 digest;
  digest.update(bytes.data(), bytes.size());
  return digest.hex();
}

std::string md5_of_file(const std::filesystem::path& path) {
  const InputFile file(path);
  Md5 digest;
  std::vector<std::uint8_t> piece(1 << 20);
  for (std::int64_t at = 0; at < file.size();) {
    const auto count = std::min(static_cast<std::int64_t>(piece.size()), file.size() - at);
    file.read(at, piece.data(), count);
    digest.update(piece.data(), static_cast<std::size_t>(count));
    at += count;
  }
  return digest.hex();
}

}  // namespace fm
