// The pages: what is filled into them stays text, and fmsample --viewer puts into them what
// fmsample draws.
#include <cstdlib>

#include "apps/viewer/page.h"
#include "apps/viewer/report_page.h"
#include "engine/io/image_grid.h"
#include "tests/apps/small_run.h"

namespace fm::test {
namespace {

namespace fs = std::filesystem;

// The JSON that a page carries.
Json data_of(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const std::size_t begin = page.find(open);
  REQUIRE(begin != page.npos);
  const std::size_t from = begin + open.size(), end = page.find("</script>", from);
  return Json::parse(page.substr(from, end - from));
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++count;
  return count;
}

Image picture_of(const std::string& uri) {
  const std::string head = "data:image/png;base64,";
  REQUIRE(uri.starts_with(head));
  std::string bytes;
  std::uint32_t group = 0;
  int bits = 0;
  for (const char c : uri.substr(head.size())) {
    if (c == '=') break;
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    group = group << 6 | static_cast<std::uint32_t>(digits.find(c));
    bits += 6;
    if (bits >= 8) bytes += static_cast<char>(group >> (bits -= 8) & 255);
  }
  return decode_png(bytes).image;
}

constexpr std::int64_t kSide = 28;

// Cell (row, column) of a picture of cells.
std::vector<int> cell(const Image& image, std::int64_t row, std::int64_t column) {
  std::vector<int> pixels;
  for (std::int64_t y = 0; y < kSide; ++y)
    for (std::int64_t x = 0; x < kSide; ++x)
      pixels.push_back(image.pixels[static_cast<std::size_t>((row * kSide + y) * image.width +
                                                             column * kSide + x)]);
  return pixels;
}

// As the pictures of a grid, to the rounding of a byte.
void expect_cell(const std::vector<int>& shown, const float* image) {
  const Image grid =
      image_grid({.count = 1, .channels = 1, .height = kSide, .width = kSide, .images = image});
  int largest = 0;
  for (std::size_t i = 0; i < shown.size(); ++i)
    largest = std::max(largest, std::abs(shown[i] - int{grid.pixels[i]}));
  CHECK(largest <= 1);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("pages: the program carries their sources as they stand in the tree") {
    const fs::path folder = fs::path(FM_SOURCE_DIR) / "apps/viewer/page";
    int files = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
      INFO(entry.path());
      CHECK(page_source(entry.path().filename().string()) == get(entry.path()));
      ++files;
    }
    CHECK(files >= 8);
    CHECK(page_source("nowhere.js").empty());
    CHECK_THROWS_AS(make_page("nowhere.html", "", Json()), Error);
  }

  TEST_CASE("pages: hostile text ends no element and is not filled in again") {
    const std::string hostile = "</script><!--<script>\"&'{{data}}{{title}}\u2028";
    Json data;
    data["a " + hostile] = {hostile, 1.5, nullptr};
    const std::string plain = make_page("viewer.html", "title", Json::object());
    const std::string page = make_page("viewer.html", hostile, data);
    CHECK(data_of(page) == data);
    CHECK(occurrences(page, "</script>") == occurrences(plain, "</script>"));
    CHECK(occurrences(page, "<script") == occurrences(plain, "<script"));
    CHECK(occurrences(page, "<!--") == occurrences(plain, "<!--"));
    CHECK(
        contains(page, "<title>&lt;/script&gt;&lt;!--&lt;script&gt;&quot;&amp;'{{data}}{{title}}"));
    data = {"\xff"};
    CHECK(data_of(make_page("viewer.html", "", data))[0] == "\uFFFD");
  }

  TEST_CASE("pages: nothing is loaded from anywhere") {
    for (const char* name : {"viewer.html", "report.html"}) {
      const std::string page = make_page(name, "title", Json::object());
      CHECK(contains(page, "content=\"default-src 'none';"));
      CHECK_FALSE(contains(page, "src=\""));
      CHECK_FALSE(contains(page, "@import"));
      CHECK_FALSE(contains(page, "https:"));
      // The name of SVG's vocabulary is no address that anyone fetches.
      CHECK(occurrences(page, "http:") == occurrences(page, "\"http://www.w3.org/2000/svg\""));
      CHECK_FALSE(contains(page, "{{"));
    }
  }

  TEST_CASE("pages: a report is written whole, its title in place") {
    const TemporaryFolder folder;
    write_report_page(folder / "report.html", {{"title", "A & B"}, {"backbones", Json::array()}});
    const std::string page = get(folder / "report.html");
    CHECK(contains(page, "<title>A &amp; B</title>"));
    CHECK(data_of(page)["title"] == "A & B");
    CHECK(page.ends_with("</html>\n"));
  }

  TEST_CASE("fmsample --viewer: the pictures are what fmsample draws, from the same noise") {
    const TemporaryFolder folder;
    const std::string set = put_set(folder / "set");
    const auto trained = [&](const std::string& name, const Arguments& more) {
      train(small_run(set, folder / name, Arguments{"--max-steps", "6", "--lr", "0.05"} + more));
      return (folder / name).string();
    };
    const std::string labelled = trained("labelled", {"--classes", "10"}),
                      other = trained("other", {"--classes", "10", "--seed", "1"}),
                      free = trained("free", {"--blocks", "attention"});
    const std::string page = (folder / "page.html").string();
    const Arguments device = {"--device", "cpu", "--threads", "1"};
    const Outcome outcome =
        expect_end(0, "page of ", "fmsample",
                   Arguments{"--ckpt", labelled, "--ckpt", other, free, "--viewer", page, "--steps",
                             "3", "--seed", "9", "--cfg-scale", "2", "--viewer-noises", "2"} +
                       device);
    CHECK(outcome.out == page + "\n");
    const Json viewer = data_of(get(page));
    CHECK(viewer["image"] == 28);
    CHECK(viewer["steps"] == 3);
    CHECK(viewer["seed"] == 9);
    CHECK(viewer["times"].size() == 4);
    REQUIRE(viewer["sets"].size() == 2);

    const Json &by_class = viewer["sets"][0], &by_noise = viewer["sets"][1];
    CHECK(by_class["kind"] == "classes");
    CHECK(by_class["cfg_scale"] == 2);
    REQUIRE(by_class["rows"].size() == 20);
    CHECK(by_class["rows"][7] == Json({{"label", 3}, {"noise", 1}}));
    REQUIRE(by_class["backbones"].size() == 2);
    CHECK(by_class["backbones"][0]["label"] == "Hybrid (labelled)");
    CHECK(by_class["backbones"][1]["label"] == "Hybrid (other)");
    CHECK(by_noise["kind"] == "seeds");
    CHECK(by_noise["cfg_scale"] == 1);
    REQUIRE(by_noise["rows"].size() == 2);
    REQUIRE(by_noise["backbones"].size() == 1);
    CHECK(by_noise["backbones"][0]["label"] == "Transformer");

    // Trajectories of two images as fmsample draws them.
    const auto trajectory = [&](const std::string& run, const Arguments& more) {
      expect_end(0, "", "fmsample",
                 Arguments{"--ckpt", run, "--n", "2", "--steps", "3", "--seed", "9", "--out", "",
                           "--trajectory", (folder / "frames").string()} +
                     more + device);
      return SafetensorsFile(folder / "frames/trajectory.safetensors").read<float>("trajectory");
    };
    const auto expect_rows = [&](const Json& backbone, std::int64_t first_row,
                                 const std::vector<float>& states) {
      const Image shown = picture_of(backbone["states"]);
      const Image velocities = picture_of(backbone["velocities"]);
      CHECK(shown.width == 4 * kSide);
      CHECK(velocities.width == 3 * kSide);
      CHECK(velocities.height == shown.height);
      constexpr std::int64_t kPixels = kSide * kSide;
      for (std::int64_t step = 0; step <= 3; ++step)
        for (std::int64_t image = 0; image < 2; ++image)
          expect_cell(cell(shown, first_row + image, step),
                      states.data() + (step * 2 + image) * kPixels);
      std::vector<float> velocity(kPixels);  // of the second image's last step, over the range
      for (std::size_t p = 0; p < velocity.size(); ++p)
        velocity[p] = (states[(3 * 2 + 1) * kPixels + p] - states[(2 * 2 + 1) * kPixels + p]) * 3 /
                      viewer["velocity_range"].get<float>();
      expect_cell(cell(velocities, first_row + 1, 2), velocity.data());
    };
    expect_rows(by_class["backbones"][0], 6,
                trajectory(labelled, {"--label", "3", "--cfg-scale", "2"}));
    expect_rows(by_class["backbones"][1], 18,
                trajectory(other, {"--label", "9", "--cfg-scale", "2"}));
    expect_rows(by_noise["backbones"][0], 0, trajectory(free, {}));

    // One digit alone.
    expect_end(
        0, "", "fmsample",
        Arguments{"--ckpt", labelled, "--viewer", page, "--steps", "1", "--label", "4"} + device);
    const Json one = data_of(get(page));
    REQUIRE(one["sets"].size() == 1);
    CHECK(one["sets"][0]["rows"].size() == 4);
    CHECK(one["sets"][0]["rows"][0]["label"] == 4);
    CHECK(one["sets"][0]["backbones"][0]["label"] == "Hybrid");

    // What does not go together.
    const auto refuse = [&](int code, const std::string& phrase, const Arguments& arguments) {
      expect_end(code, phrase, "fmsample", arguments + device);
    };
    const Arguments to_page = {"--viewer", page};
    refuse(2, "one --ckpt is sampled at a time, got 2", {"--ckpt", labelled, other});
    refuse(2, "--out excludes --viewer", Arguments{"--ckpt", labelled, "--out", "a.png"} + to_page);
    refuse(2, "label must be all or 0 to 9, got 10",
           Arguments{"--ckpt", labelled, "--label", "10"} + to_page);
    refuse(2, "no checkpoint has classes", Arguments{"--ckpt", free, "--label", "1"} + to_page);
    refuse(2, "noises must be 1 to 64",
           Arguments{"--ckpt", free, "--viewer-noises", "0"} + to_page);
    refuse(2, "lower --steps or --viewer-noises",
           Arguments{"--ckpt", labelled, "--steps", "1000"} + to_page);
    const std::string small = (folder / "small").string();
    train(small_run(put_set(folder / "set14", 64, 14), small, {"--max-steps", "1"}));
    refuse(2, "images of one size, got 1 x 28 x 28", Arguments{"--ckpt", free, small} + to_page);
    refuse(1, "must be writable",
           Arguments{"--ckpt", free, "--steps", "1", "--viewer", (folder / "no/p.html").string()});
    refuse(3, "nowhere", Arguments{"--ckpt", free, (folder / "nowhere").string()} + to_page);
  }
}

}  // namespace fm::test
