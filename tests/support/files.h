// Files for tests: a folder that goes away, raw bytes on the disk, damaged copies, expected faults.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "kernels/base/check.h"

namespace fm::test {

// A folder of its own under the system's temporary one, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fm_test_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::filesystem::path put(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary);
  out << bytes;
  out.close();
  REQUIRE(out.good());
  return path;
}

inline std::string get(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

// `call` must throw fm::Error of that fault, with `phrase` in its message.
template <class Call>
void expect_fault(Fault fault, const std::string& phrase, Call&& call) {
  INFO("expected: ", phrase);
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what();
    INFO("got: ", message);
    CHECK(error.fault() == fault);
    CHECK(message.find(phrase) != std::string::npos);
    return;
  }
  FAIL_CHECK("nothing was thrown");
}

// Calls read(copy) for copies of `bytes` with a few bytes changed in their first `range`, or cut
// short: each must pass or be Fault::data, and some must be refused. Any other exception fails.
template <class Read>
void expect_survives_damage(const std::string& bytes, std::size_t range, int copies, Read&& read) {
  std::mt19937 draw(7);
  int refused = 0;
  for (int i = 0; i < copies; ++i) {
    std::string copy = bytes;
    for (unsigned changes = 1 + draw() % 4; changes > 0; --changes)
      copy[draw() % range] = static_cast<char>(draw());
    if (i % 4 == 0) copy.resize(draw() % copy.size());
    try {
      read(copy);
    } catch (const Error& error) {
      INFO("copy ", i, ": ", std::string(error.what()));
      CHECK(error.fault() == Fault::data);
      ++refused;
    }
  }
  CHECK(refused > copies / 4);
}

}  // namespace fm::test
