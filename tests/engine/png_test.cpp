#include "engine/io/png.h"

#include <algorithm>
#include <limits>

#include "engine/io/image_grid.h"
#include "tests/support/files.h"

namespace fm::test {
namespace {

Image noise(std::int64_t width, std::int64_t height, int channels) {
  Image image{width, height, channels, {}};
  std::mt19937 draw(3);
  for (std::int64_t i = 0; i < width * height * channels; ++i)
    image.pixels.push_back(static_cast<std::uint8_t>(draw()));
  return image;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("png: pixels and text come back, for every number of channels") {
    const TemporaryFolder folder;
    const PngText text{
        {"seed", "42"}, {"Solver", "heun"}, {"note", "t = 0 \xe2\x86\x92 1\nline"}, {"empty", ""}};
    for (int channels = 1; channels <= 4; ++channels) {
      const Image image = noise(37, 11, channels);
      write_png(folder / "a.png", image, text);
      const DecodedPng back = read_png(folder / "a.png");
      CHECK(back.image.width == 37);
      CHECK(back.image.height == 11);
      CHECK(back.image.channels == channels);
      CHECK(back.image.pixels == image.pixels);
      CHECK(back.text == text);
    }
  }

  TEST_CASE("png: wrong images and texts are usage faults") {
    const auto refused = [](const std::string& phrase, const Image& image, const PngText& text) {
      expect_fault(Fault::usage, phrase, [&] { encode_png(image, text); });
    };
    refused("channels must be 1 to 4", {1, 1, 5, {1, 2, 3, 4, 5}}, {});
    refused("pixels a side", {0, 1, 1, {}}, {});
    refused("pixels a side", {100000, 1, 1, {}}, {});
    refused("height x width x channels", {2, 2, 1, {1, 2, 3}}, {});
    for (const std::string& key : {std::string(), std::string(80, 'k'), std::string(" a"),
                                   std::string("a  b"), std::string("a\n")})
      refused("text key", noise(1, 1, 1), {{key, "x"}});
    refused("without NUL", noise(1, 1, 1), {{"key", std::string("a\0b", 3)}});
  }

  TEST_CASE("png: damaged files are data faults") {
    const TemporaryFolder folder;
    const std::string bytes = encode_png(noise(16, 16, 3), {{"seed", "42"}});
    expect_fault(Fault::data, "[png]", [&] { decode_png(""); });
    expect_fault(Fault::data, "[png]", [&] { decode_png("not a PNG at all, but long enough"); });
    expect_fault(Fault::data, "early end", [&] { decode_png(bytes.substr(0, bytes.size() / 2)); });
    expect_fault(Fault::data, "missing.png", [&] { read_png(folder / "missing.png"); });
    expect_survives_damage(bytes, bytes.size(), 500,
                           [](const std::string& copy) { decode_png(copy); });
  }

  TEST_CASE("image_grid: 64 digits are 242 x 242, as torchvision lays them out") {
    std::vector<float> images(64 * 28 * 28, -1);
    images[0] = 1;                            // top left pixel of the first image
    images[63 * 28 * 28 + 27 * 28 + 27] = 1;  // bottom right pixel of the last
    images[9 * 28 * 28] = 1;                  // second row, second column
    const Image grid = image_grid({64, 1, 28, 28, images.data()});
    REQUIRE(grid.width == 242);
    REQUIRE(grid.height == 242);
    REQUIRE(grid.channels == 1);
    std::vector<std::uint8_t> want(242 * 242, 0);
    want[2 * 242 + 2] = want[239 * 242 + 239] = want[32 * 242 + 32] = 255;
    CHECK(grid.pixels == want);
  }

  TEST_CASE("image_grid: values are clamped and rounded, NaN is black") {
    const float inf = std::numeric_limits<float>::infinity();
    const float values[] = {-1, 1, 0, -7, 7, inf, -inf, std::numeric_limits<float>::quiet_NaN()};
    const Image image = image_grid({1, 1, 2, 4, values});
    CHECK(image.width == 4);
    CHECK(image.pixels == std::vector<std::uint8_t>{0, 255, 128, 0, 255, 255, 0, 0});
  }

  TEST_CASE("image_grid: channels") {
    const float values[] = {-1, 0, 1, -1};  // one pixel of up to four channels
    CHECK(image_grid({1, 2, 1, 1, values}).pixels == std::vector<std::uint8_t>{0});
    CHECK(image_grid({1, 3, 1, 1, values}).pixels == std::vector<std::uint8_t>{0, 128, 255});
    CHECK(image_grid({1, 4, 1, 1, values}).pixels == std::vector<std::uint8_t>{0, 128, 255});
  }

  TEST_CASE("image_grid: ragged last row, few images, other padding") {
    const std::vector<float> images(5 * 2 * 3, 1);
    const Image ragged = image_grid({5, 1, 2, 3, images.data(), 3, 1});
    CHECK(ragged.width == 3 * 4 + 1);
    CHECK(ragged.height == 2 * 3 + 1);
    CHECK(std::count(ragged.pixels.begin(), ragged.pixels.end(), 255) == 5 * 6);
    CHECK(image_grid({5, 1, 2, 3, images.data()}).width == 5 * 5 + 2);
    expect_fault(Fault::usage, "[image_grid]", [&] { image_grid({0, 1, 2, 3, images.data()}); });
    expect_fault(Fault::usage, "[image_grid]", [&] { image_grid({1, 5, 2, 3, images.data()}); });
    expect_fault(Fault::usage, "per_row", [&] { image_grid({1, 1, 2, 3, images.data(), 0}); });
  }
}

}  // namespace fm::test
