#include "engine/io/idx.h"

#include <zlib.h>

#include <cstring>

#include "tests/support/files.h"

namespace fm::test {
namespace {

std::string word(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
  return bytes;
}

std::string images_of(std::uint32_t count, std::uint32_t rows, std::uint32_t cols) {
  std::string bytes = word(2051) + word(count) + word(rows) + word(cols);
  for (std::uint32_t i = 0; i < count * rows * cols; ++i) bytes += static_cast<char>(i * 37);
  return bytes;
}

std::string labels_of(std::uint32_t count) {
  std::string bytes = word(2049) + word(count);
  for (std::uint32_t i = 0; i < count; ++i) bytes += static_cast<char>(i % 10);
  return bytes;
}

std::string gzip(std::string bytes) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string packed(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// Plain and zipped alike.
void expect_refused(const std::string& phrase, const std::string& bytes) {
  const TemporaryFolder folder;
  expect_fault(Fault::data, phrase, [&] { read_idx_images(put(folder / "plain", bytes)); });
  expect_fault(Fault::data, phrase, [&] { read_idx_images(put(folder / "gz", gzip(bytes))); });
}

void expect_gz_refused(const std::string& phrase, const std::string& packed) {
  const TemporaryFolder folder;
  expect_fault(Fault::data, phrase, [&] { read_idx_images(put(folder / "gz", packed)); });
}

void put_split(const std::filesystem::path& folder, const std::string& stem,
               const std::string& images, const std::string& labels, const char* suffix = "") {
  std::filesystem::create_directories(folder);
  put(folder / (stem + "-images-idx3-ubyte" + suffix), images);
  put(folder / (stem + "-labels-idx1-ubyte" + suffix), labels);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("idx: images and labels, plain and gzipped") {
    const TemporaryFolder folder;
    const std::string images = images_of(5, 3, 4), labels = labels_of(5);
    for (const bool zipped : {false, true}) {
      const IdxImages i = read_idx_images(put(folder / "i", zipped ? gzip(images) : images));
      CHECK(i.count == 5);
      CHECK(i.rows == 3);
      CHECK(i.cols == 4);
      CHECK_FALSE(i.square());
      REQUIRE(i.pixels.size() == 60);
      CHECK(std::memcmp(i.pixels.data(), images.data() + 16, 60) == 0);
      const IdxLabels l = read_idx_labels(put(folder / "l", zipped ? gzip(labels) : labels));
      CHECK(l.values == std::vector<std::uint8_t>{0, 1, 2, 3, 4});
      CHECK(l.classes() == 5);
    }
    CHECK(read_idx_images(put(folder / "i", images_of(1, 9, 9))).square());
    const IdxLabels wide = read_idx_labels(put(folder / "l", word(2049) + word(2) + "\xff\x01"));
    CHECK(wide.classes() == 256);
    // Larger than one piece of the unpacking.
    const std::string large = images_of(3000, 28, 28);
    CHECK(read_idx_images(put(folder / "i", gzip(large))).pixels.size() == large.size() - 16);
  }

  TEST_CASE("idx: malformed files are data faults, plain and gzipped") {
    const std::string good = images_of(2, 3, 3);
    expect_refused("must have a magic, got 0 bytes", "");
    expect_refused("must have a magic, got 3 bytes", good.substr(0, 3));
    expect_refused("a header must have 16 bytes, got 12", good.substr(0, 12));
    expect_refused("got 1 (", word(1) + good.substr(4));
    expect_refused("got 50855936 (", word(0x03080000) + good.substr(4));  // little-endian
    expect_refused("got 2049 (labels)", labels_of(20));
    expect_refused("the 34 bytes its header declares, got 33", good.substr(0, 33));
    expect_refused("got 16", good.substr(0, 16));
    expect_refused("got more", good + 'x');
    expect_refused("got more", good + good);
    expect_refused("got 0 x 3 x 3", word(2051) + word(0) + word(3) + word(3));
    expect_refused("got 2 x 0 x 3", word(2051) + word(2) + word(0) + word(3));
    expect_refused("got 2 x 3 x 0", word(2051) + word(2) + word(3) + word(0));
    const std::uint32_t most = 0xffffffff;
    expect_refused("1 to 2 GiB", word(2051) + word(most) + word(most) + word(most));
    // 2^64 + 18: a product in 64 bits would be 18, as many bytes as follow.
    expect_refused("1 to 2 GiB", word(2051) + word(1u << 31) + word(1u << 31) + word(4) + "x");
    expect_refused("1 to 2 GiB", word(2051) + word(60000) + word(280) + word(280));
    expect_refused("got 20", word(2051) + word(2000) + word(1000) + word(1000) + "none");
    const TemporaryFolder folder;
    expect_fault(Fault::data, "got 2051 (images)",
                 [&] { read_idx_labels(put(folder / "l", good)); });
    expect_fault(Fault::data, "missing", [&] { read_idx_images(folder / "missing"); });
  }

  TEST_CASE("idx: damaged gzip data is a data fault") {
    const std::string good = gzip(images_of(20, 9, 9));
    for (const std::size_t size : {good.size() - 1, good.size() - 8, good.size() / 2})
      expect_gz_refused("got an early end", good.substr(0, size));
    expect_gz_refused("early end", good.substr(0, 5));
    std::string damaged = good;
    damaged[good.size() - 8] ^= 1;
    expect_gz_refused("incorrect data check", damaged);
    damaged = good;
    damaged[good.size() - 1] ^= 1;
    expect_gz_refused("incorrect length check", damaged);
    expect_gz_refused("bytes after it", good + "trailing");
    expect_gz_refused("bytes after it", good + good);
    // A bomb: 64 MiB of zeros behind a header that declares 9 bytes is not unpacked.
    const std::string header = word(2051) + word(1) + word(3) + word(3);
    expect_gz_refused("got more", gzip(header + std::string(64 << 20, '\0')));
    const TemporaryFolder folder;
    expect_survives_damage(good, good.size(), 500, [&](const std::string& copy) {
      read_idx_images(put(folder / "gz", copy));
    });
  }

  TEST_CASE("idx: a split is found in the folder or below it, zipped or not") {
    const TemporaryFolder folder;
    CHECK_FALSE(find_idx(folder.path(), IdxSplit::train));
    put_split(folder / "MNIST/raw", "train", gzip(images_of(3, 2, 2)), gzip(labels_of(3)), ".gz");
    put_split(folder / "MNIST/raw", "t10k", images_of(2, 2, 2), labels_of(2));
    CHECK(load_idx(folder.path(), IdxSplit::train).images.count == 3);
    CHECK(load_idx(folder.path(), IdxSplit::test).labels.values.size() == 2);
    CHECK(load_idx(folder / "MNIST/raw", IdxSplit::train).images.count == 3);
    put_split(folder.path(), "train", images_of(4, 2, 2), labels_of(4));
    CHECK(load_idx(folder.path(), IdxSplit::train).images.count == 4);
  }

  TEST_CASE("idx: an absent set names every path; unequal counts are refused") {
    const TemporaryFolder folder;
    put(folder / "train-images-idx3-ubyte", images_of(3, 2, 2));
    for (const char* tried :
         {"/train-images-idx3-ubyte (found)", "/train-images-idx3-ubyte.gz (not found)",
          "/train-labels-idx1-ubyte (not found)", "/train-labels-idx1-ubyte.gz (not found)",
          "/MNIST/raw/train-images-idx3-ubyte (", "/MNIST/raw/train-images-idx3-ubyte.gz (",
          "/MNIST/raw/train-labels-idx1-ubyte (", "/MNIST/raw/train-labels-idx1-ubyte.gz ("})
      expect_fault(Fault::data, folder.path().string() + tried,
                   [&] { load_idx(folder.path(), IdxSplit::train); });
    put(folder / "train-labels-idx1-ubyte", labels_of(4));
    expect_fault(Fault::data, "3 images and 4 labels",
                 [&] { load_idx(folder.path(), IdxSplit::train); });
  }
}

}  // namespace fm::test
