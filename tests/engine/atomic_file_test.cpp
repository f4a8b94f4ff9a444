#include "engine/io/atomic_file.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/support/files.h"

namespace fm::test {
namespace {

int entries(const TemporaryFolder& folder) {
  const std::filesystem::directory_iterator begin(folder.path()), end;
  return static_cast<int>(std::distance(begin, end));
}

// The id of a process that has ended and been waited for.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return child;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("atomic_file: the old file stays until commit, and no temporary after it") {
    const TemporaryFolder folder;
    const auto path = put(folder / "a.bin", "old");
    {
      AtomicFile file(path);
      file.write("new ");
      file.write("bytes");
      CHECK(get(path) == "old");
      CHECK(entries(folder) == 2);
      file.commit();
      CHECK(get(path) == "new bytes");
    }
    CHECK(get(path) == "new bytes");
    CHECK(entries(folder) == 1);
  }

  TEST_CASE("atomic_file: without commit nothing has happened") {
    const TemporaryFolder folder;
    const auto path = put(folder / "a.bin", "old");
    { AtomicFile(path).write("half"); }
    CHECK(get(path) == "old");
    CHECK(entries(folder) == 1);
  }

  TEST_CASE("atomic_file: an empty file, and one of several megabytes") {
    const TemporaryFolder folder;
    write_file(folder / "empty", "");
    CHECK(get(folder / "empty").empty());
    const std::string large(5 << 20, 'x');
    write_file(folder / "large", large);
    CHECK(get(folder / "large") == large);
  }

  TEST_CASE("atomic_file: what cannot be written is a run-time fault with path and reason") {
    const TemporaryFolder folder;
    expect_fault(Fault::runtime, "No such file or directory",
                 [&] { write_file(folder / "no/such/folder/a", "x"); });
    expect_fault(Fault::runtime, "no/such/folder/a",
                 [&] { write_file(folder / "no/such/folder/a", "x"); });
    expect_fault(Fault::runtime, "a folder", [&] { write_file(folder.path(), "x"); });
    REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
    expect_fault(Fault::runtime, "a pipe", [&] { write_file(folder / "pipe", "x"); });
    CHECK(entries(folder) == 1);
  }

  TEST_CASE("atomic_file: a disk that fills up leaves the old file and no temporary") {
    const TemporaryFolder folder;
    const auto path = put(folder / "a.bin", "old");
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    const rlimit tight{1000, before.rlim_max};
    const auto handler = ::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
    expect_fault(Fault::runtime, "File too large",
                 [&] { write_file(path, std::string(5000, 'x')); });
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    ::signal(SIGXFSZ, handler);
    CHECK(get(path) == "old");
    CHECK(entries(folder) == 1);
  }

  TEST_CASE("atomic_file: temporaries of dead processes go, everything else stays") {
    const TemporaryFolder folder;
    const std::string dead = std::to_string(dead_process()), alive = std::to_string(::getpid());
    put(folder / ("a.bin.tmp." + dead), "half");
    put(folder / ("b.tmp." + dead), "half");
    const std::string kept[] = {"a.bin",        "a.bin.tmp." + alive, "a.tmp.",
                                ".tmp." + dead, "a.tmp.12x",          "a.tmp.-" + dead,
                                "a.tmp.0",      "notes." + dead,      "a.tmp.99999999999999999999"};
    for (const std::string& name : kept) put(folder / name, "kept");
    std::filesystem::create_directory(folder / ("folder.tmp." + dead));
    CHECK(remove_stale_temporaries(folder.path()) == 2);
    CHECK(entries(folder) == static_cast<int>(std::size(kept)) + 1);
    for (const std::string& name : kept) CHECK(std::filesystem::exists(folder / name));
    CHECK(remove_stale_temporaries(folder / "missing") == 0);
  }

  TEST_CASE("input_file: bounded reads") {
    const TemporaryFolder folder;
    const auto path = put(folder / "a.bin", "0123456789");
    const InputFile file(path);
    CHECK(file.size() == 10);
    char piece[4] = {};
    file.read(6, piece, 4);
    CHECK(std::string(piece, 4) == "6789");
    file.read(10, piece, 0);
    for (const auto& [offset, count] : {std::pair{7L, 4L}, {11L, 0L}, {-1L, 1L}, {0L, -1L}})
      expect_fault(Fault::data, "10 bytes in all", [&] { file.read(offset, piece, count); });
    std::filesystem::resize_file(path, 5);
    expect_fault(Fault::data, "shrunk", [&] { file.read(4, piece, 4); });
  }

  TEST_CASE("read_file: limits and unreadable things are data faults") {
    const TemporaryFolder folder;
    const auto path = put(folder / "a.bin", "0123456789");
    CHECK(read_file(path, 10).size() == 10);
    expect_fault(Fault::data, "at most 9 bytes, got 10", [&] { read_file(path, 9); });
    expect_fault(Fault::data, "No such file", [&] { read_file(folder / "missing", 9); });
    expect_fault(Fault::data, "a folder", [&] { read_file(folder.path(), 9); });
    REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
    expect_fault(Fault::data, "a pipe", [&] { read_file(folder / "pipe", 9); });
  }
}

}  // namespace fm::test
