// Where the images come from: folders, $FM_DATA_DIR, the cache, a download, the built-in digits.
#include <netinet/in.h>
#include <sys/socket.h>

#include <iostream>

#include "engine/io/md5.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

const std::string kPython = "/usr/bin/env";

Arguments plan(const std::string& data) {
  return kSmallModel + kSmallTraining + Arguments{"--data", data, "--dry-run"};
}

// The data set that --dry-run finds.
Json data_of(const Outcome& outcome) {
  INFO("stderr: ", outcome.err);
  REQUIRE(outcome.code == 0);
  return Json::parse(outcome.out.substr(0, outcome.out.find("\n\n")))["data"];
}

int free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(::bind(socket, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  ::close(socket);
  return ntohs(address.sin_port);
}

bool answers(int port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  const bool yes = ::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(socket);
  return yes;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("data: a folder, zipped or not, or its MNIST/raw") {
    const TemporaryFolder folder;
    put_set(folder / "plain");
    put_set(folder / "zipped", 64, 28, true);
    put_set(folder / "nested/MNIST/raw");
    std::string fingerprint;
    for (const char* name : {"plain", "zipped", "nested"}) {
      const Json data = data_of(run("fmtrain", plan((folder / name).string())));
      CHECK(data["source"] == (folder / name).string());
      CHECK(data["name"] == name);
      CHECK(data["images"] == 64);
      if (fingerprint.empty()) fingerprint = data["fingerprint"];
      CHECK(data["fingerprint"] == fingerprint);
    }
    // A slash at the end and dots change nothing.
    const Json data = data_of(run("fmtrain", plan((folder / "nested/../plain/./").string())));
    CHECK(data["source"] == (folder / "plain").string());
    CHECK(data["name"] == "plain");
  }

  TEST_CASE("data: auto is $FM_DATA_DIR, then the cache, then digits with a word about it") {
    const TemporaryFolder folder;
    const std::string asked = put_set(folder / "asked", 40), cache = (folder / "cache").string();
    const std::string none = (folder / "none").string();
    const auto found = [&](const Environment& environment) {
      return data_of(run("fmtrain", plan("auto"), environment))["images"].get<int>();
    };
    const Outcome digits =
        run("fmtrain", plan("auto"), {{"XDG_CACHE_HOME", cache}, {"FM_DATA_DIR", none}});
    CHECK(data_of(digits)["source"] == "digits");
    CHECK(data_of(digits)["images"] == 60000);
    CHECK(contains(digits.err, "MNIST is not in " + none + " and " + cache +
                                   "/fm/mnist: using the built-in digits"));
    put_set(fs::path(cache) / "fm/mnist", 48);
    CHECK(found({{"XDG_CACHE_HOME", cache}}) == 48);
    CHECK(found({{"XDG_CACHE_HOME", cache}, {"FM_DATA_DIR", none}}) == 48);
    CHECK(found({{"XDG_CACHE_HOME", cache}, {"FM_DATA_DIR", asked}}) == 40);
    put_set(folder / "home/.cache/fm/mnist", 56);
    CHECK(found({{"HOME", (folder / "home").string()}}) == 56);
    CHECK(found({{"HOME", (folder / "home").string()}, {"XDG_CACHE_HOME", "not/absolute"}}) == 56);
  }

  TEST_CASE("data: other square sizes train and sample") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set", 16, 32);
    train(small_run(set, folder / "run", {"--max-steps", "2", "--patch", "8"}));
    CHECK(json_of(folder / "run/config.json")["model"]["image"] == 32);
    expect_end(0, "", "fmsample",
               {"--ckpt", (folder / "run").string(), "--n", "3", "--steps", "1", "--device", "cpu",
                "--out", (folder / "s.png").string()});
  }

  TEST_CASE("data: what is wrong with a set is exit code 3") {
    const TemporaryFolder folder;
    const fs::path set = folder / "set";
    const auto refuse = [&](const std::string& phrase, const std::string& images,
                            const std::string& labels) {
      put(set / "train-images-idx3-ubyte", images);
      put(set / "train-labels-idx1-ubyte", labels);
      expect_end(3, phrase, "fmtrain", plan(set.string()));
    };
    expect_end(3, "not found", "fmtrain", plan((folder / "nowhere").string()));
    fs::create_directories(set);
    const std::string images = idx_images(16, 28, 28), labels = idx_labels(16);
    refuse("magic must be 2051", labels, labels);
    refuse("bytes its header declares", images.substr(0, images.size() - 1), labels);
    refuse("got more", images + "x", labels);
    refuse("16 images and 15 labels", images, idx_labels(15));
    refuse("images must be square, got 14 x 28", idx_images(16, 14, 28), labels);
    refuse("labels must be 0 to 254, got 255", images,
           labels.substr(0, labels.size() - 1) + "\xff");
    std::string zipped = gzipped(images);
    zipped[zipped.size() / 2] ^= 0x55;
    refuse("gzip", zipped, labels);
  }

  TEST_CASE("data: --download takes the four files and checks them") {
    if (run(kPython, {"python3", "--version"}).code != 0 ||
        run(kPython, {"curl", "--version"}).code != 0) {
      std::cout << "skipped: a download needs python3 as the server and curl\n";
      return;
    }
    const TemporaryFolder folder;
    const fs::path mirror = folder / "mirror", cache = folder / "cache/fm/mnist";
    put_set(mirror, 64, 28, true);
    fs::copy(mirror / "train-images-idx3-ubyte.gz", mirror / "t10k-images-idx3-ubyte.gz");
    fs::copy(mirror / "train-labels-idx1-ubyte.gz", mirror / "t10k-labels-idx1-ubyte.gz");
    const int port = free_port();
    const Program server(kPython, {"python3", "-m", "http.server", std::to_string(port), "--bind",
                                   "127.0.0.1", "--directory", mirror.string()});
    wait_until([&] { return answers(port) || server.ended(); });
    const std::string images = md5_of_file(mirror / "train-images-idx3-ubyte.gz");
    const std::string labels = md5_of_file(mirror / "train-labels-idx1-ubyte.gz");
    const std::string sums = images + "," + labels + "," + images + "," + labels;
    const auto from = [&](const std::string& place, const std::string& md5) {
      return Environment{{"FM_MNIST_URL", "http://127.0.0.1:" + std::to_string(port) + place},
                         {"FM_MNIST_MD5", md5},
                         {"NO_PROXY", "127.0.0.1"},
                         {"XDG_CACHE_HOME", (folder / "cache").string()}};
    };
    const Arguments download = plan("auto") + Arguments{"--download"};

    expect_end(1, "could not be fetched", "fmtrain", download, from("/elsewhere", sums));
    expect_end(2, "FM_MNIST_MD5 must hold four sums, got 1", "fmtrain", download, from("", images));
    expect_end(3, "train-labels-idx1-ubyte.gz has md5 " + labels + ", expected " + images,
               "fmtrain", download, from("", images + "," + images + "," + images + "," + images));
    // What was right is kept; nothing else is left.
    CHECK(fs::exists(cache / "train-images-idx3-ubyte.gz"));
    CHECK(std::distance(fs::directory_iterator(cache), {}) == 1);
    // The sums of the real MNIST are the default.
    Environment real = from("", sums);
    real.erase("FM_MNIST_MD5");
    expect_end(3, "expected f68b3c2dcbeaaa9fbdd348bbdeb94873", "fmtrain", download, real);

    CHECK(data_of(run("fmtrain", download, from("", sums)))["source"] == cache.string());
    CHECK(std::distance(fs::directory_iterator(cache), {}) == 4);
    // Files that are there and right are not fetched again, and without --download nothing is.
    CHECK(data_of(run("fmtrain", download, from("/elsewhere", sums)))["images"] == 64);
    CHECK(data_of(run("fmtrain", plan("auto"), from("/elsewhere", sums)))["images"] == 64);
  }
}

}  // namespace fm::test
