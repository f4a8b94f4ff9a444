#include "engine/io/md5.h"

#include "tests/support/files.h"

namespace fm::test {

TEST_SUITE("cpu") {
  TEST_CASE("md5: the vectors of RFC 1321") {
    CHECK(md5_of("") == "d41d8cd98f00b204e9800998ecf8427e");
    CHECK(md5_of("a") == "0cc175b9c0f1b6a831c399e269772661");
    CHECK(md5_of("abc") == "900150983cd24fb0d6963f7d28e17f72");
    CHECK(md5_of("message digest") == "f96b697d7cb7938d525a2f31aaf161d0");
    CHECK(md5_of("abcdefghijklmnopqrstuvwxyz") == "c3fcd3d76192e4007dfb496cca67e13b");
    CHECK(md5_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") ==
          "d174ab98d277d9f5a5611c2c9f419d9f");
    CHECK(md5_of("1234567890123456789012345678901234567890"
                 "1234567890123456789012345678901234567890") == "57edf4a22be3c955ac49da2e2107b67a");
  }

  TEST_CASE("md5: pieces make the same digest, at every length around a block") {
    for (std::size_t size = 0; size < 200; ++size) {
      const std::string text(size, 'q');
      Md5 digest;
      for (std::size_t at = 0; at < size; at += 7) {
        const std::string piece = text.substr(at, 7);
        digest.update(piece.data(), piece.size());
      }
      CHECK(digest.hex() == md5_of(text));
    }
  }

  TEST_CASE("md5: a file larger than one read") {
    const TemporaryFolder folder;
    const std::string bytes((5 << 19) + 3, 'a');
    CHECK(md5_of_file(put(folder / "a", bytes)) == md5_of(bytes));
    expect_fault(Fault::data, "No such file", [&] { md5_of_file(folder / "missing"); });
  }
}

}  // namespace fm::test
