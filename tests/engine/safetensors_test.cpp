#include "engine/io/safetensors.h"

#include <cmath>
#include <cstring>

#include "engine/io/safetensors_header.h"
#include "tests/support/files.h"

namespace fm::test {
namespace {

std::string length_of(std::uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

// A file of a header and the given number of data bytes.
std::string file_of(const std::string& json, std::size_t data) {
  return length_of(json.size()) + json + std::string(data, '\x01');
}

// One tensor's header entry.
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}
std::string u8(int begin, int end) {
  return entry("\"U8\"", concat("[", end - begin, "]"), concat("[", begin, ",", end, "]"));
}

struct Malformed {
  std::string phrase, bytes;
};

std::vector<Malformed> malformed_files() {
  const std::string f32 = "\"F32\"";
  const auto one = [&](const std::string& tensor, std::size_t data) {
    return file_of("{\"a\":" + tensor + "}", data);
  };
  std::vector<Malformed> files{
      // the length and the text
      {"at least 8 bytes, got 0", ""},
      {"at least 8 bytes, got 7", "1234567"},
      {"must start with {", length_of(0)},
      {"lie inside the file", length_of(3) + "{}"},
      {"lie inside the file", length_of(100'000'000) + "{}"},
      {"at most 100000000 bytes", length_of(100'000'001) + "{}"},
      {"at most 100000000 bytes", length_of(UINT64_MAX) + "{}"},
      {"must start with {", file_of(" {}", 0)},
      {"must start with {", file_of("[]", 0)},
      {"must start with {", file_of("\xef\xbb\xbf{}", 0)},
      {"be text", file_of(std::string("{}\0garbage", 10), 0)},
      {"must be JSON", file_of("{\"a\":", 0)},
      {"must be JSON", file_of("{", 0)},
      {"must be JSON", file_of("{} {}", 0)},
      {"must be JSON", file_of("{\"a\":" + u8(0, 1) + ",}", 1)},
      {"must be JSON", file_of("{'a':1}", 0)},
      {"must be JSON", file_of("{\"\xff\xfe\":" + u8(0, 1) + "}", 1)},
      {"must be JSON", file_of("{\"\\ud800\":" + u8(0, 1) + "}", 1)},
      {"must be JSON", file_of("{\"a\nb\":" + u8(0, 1) + "}", 1)},
      {"got 'a' again", file_of("{\"a\":" + u8(0, 1) + ",\"a\":" + u8(0, 1) + "}", 1)},
      {"got 'a' again", file_of("{\"a\":" + u8(0, 1) + ",\"\\u0061\":" + u8(1, 2) + "}", 2)},
      {"got '__metadata__' again", file_of("{\"__metadata__\":{},\"__metadata__\":{}}", 0)},
      {"got 'k' again", file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0)},
      {"got 'dtype' again", one("{\"dtype\":\"U8\",\"dtype\":\"U8\"}", 1)},
      {"got 'shape' again", one("{\"shape\":[1],\"shape\":[1]}", 1)},
      // metadata
      {"metadata must be strings, got 1 for 'k'", file_of("{\"__metadata__\":{\"k\":1}}", 0)},
      {"metadata must be strings, got null", file_of("{\"__metadata__\":{\"k\":null}}", 0)},
      {"metadata must be strings, got an object", file_of("{\"__metadata__\":{\"k\":{}}}", 0)},
      {"metadata must be strings, got an array", file_of("{\"__metadata__\":{\"k\":[]}}", 0)},
      {"a tensor must be an object, got a string", file_of("{\"__metadata__\":\"k\"}", 0)},
      // a tensor's fields
      {"a tensor must be an object, got 1", file_of("{\"a\":1}", 0)},
      {"a tensor must be an object, got null", file_of("{\"a\":null}", 0)},
      {"a tensor must be an object, got an array", file_of("{\"a\":[]}", 0)},
      {"'a' without dtype", one("{}", 0)},
      {"'a' without dtype", one("{\"shape\":[1],\"data_offsets\":[0,1]}", 1)},
      {"'a' without shape", one("{\"dtype\":\"U8\",\"data_offsets\":[0,1]}", 1)},
      {"'a' without data_offsets", one("{\"dtype\":\"U8\",\"shape\":[1]}", 1)},
      {"only, got 'extra' in 'a'", one("{\"extra\":1}", 0)},
      {"dtype must be a string, got 1", one(entry("1", "[1]", "[0,1]"), 1)},
      {"dtype must be a string, got an array", one(entry("[]", "[1]", "[0,1]"), 1)},
      {"must be arrays, got 4", one(entry(f32, "4", "[0,16]"), 16)},
      {"must be arrays, got a string", one(entry(f32, "\"4\"", "[0,16]"), 16)},
      {"must be arrays, got an object", one(entry(f32, "[4]", "{}"), 16)},
      {"dtype must be a known one, got 'F31'", one(entry("\"F31\"", "[4]", "[0,16]"), 16)},
      {"dtype must be a known one, got 'f32'", one(entry("\"f32\"", "[4]", "[0,16]"), 16)},
      {"dtype must be a known one, got '?[31m'", one(entry("\"\\u001b[31m\"", "[1]", "[0,1]"), 1)},
      // shapes
      {"whole numbers", one(entry(f32, "[-4]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[4.0]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[4e0]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[\"4\"]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[null]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[true]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[[4]]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[9223372036854775808]", "[0,16]"), 16)},
      {"whole numbers", one(entry(f32, "[99999999999999999999999]", "[0,16]"), 16)},
      {"fit 64 bits", one(entry(f32, "[9223372036854775807]", "[0,16]"), 16)},
      // 2^64 + 4 elements would be 4 in 64 bits; 2^62 + 4 floats would be 16 bytes.
      {"fit 64 bits", one(entry(f32, "[4294967296,4294967296,2]", "[0,16]"), 16)},
      {"fit 64 bits", one(entry(f32, "[4611686018427387908]", "[0,16]"), 16)},
      {"must span 16 bytes for F32 [4], got 12", one(entry(f32, "[4]", "[0,12]"), 12)},
      {"must span 4 bytes for F32 [], got 0", one(entry(f32, "[]", "[0,0]"), 0)},
      {"must span 0 bytes", one(entry(f32, "[3,0]", "[0,4]"), 4)},
      {"must span 1.5 bytes for F4 [3]", one(entry("\"F4\"", "[3]", "[0,1]"), 1)},
      // offsets
      {"got 1 numbers", one(entry(f32, "[4]", "[16]"), 16)},
      {"got 3 numbers", one(entry(f32, "[4]", "[0,16,16]"), 16)},
      {"whole numbers", one(entry(f32, "[4]", "[-16,0]"), 16)},
      {"begin <= end", one(entry(f32, "[4]", "[16,0]"), 16)},
      {"<= 16, got [0, 20)", one(entry(f32, "[5]", "[0,20]"), 16)},
      {"<= 16, got [0, 9223372036854775807)",
       one(entry("\"U8\"", "[9223372036854775807]", "[0,9223372036854775807]"), 16)},
      {"without a hole", one(u8(1, 4), 4)},
      {"without a hole", file_of("{\"a\":" + u8(0, 2) + ",\"b\":" + u8(3, 4) + "}", 4)},
      {"without overlap", file_of("{\"a\":" + u8(0, 3) + ",\"b\":" + u8(2, 4) + "}", 4)},
      {"without overlap", file_of("{\"a\":" + u8(0, 4) + ",\"b\":" + u8(0, 4) + "}", 4)},
      {"got 1 bytes more", one(u8(0, 4), 5)},
      {"got 3 bytes more", file_of("{}", 3)},
  };
  // Nesting bombs: refused as they open, whatever their depth.
  std::string objects, arrays;
  for (int i = 0; i < 200'000; ++i) objects += "{\"a\":", arrays += '[';
  files.push_back({"only, got 'a'", file_of(objects, 0)});
  files.push_back({"whole numbers", one("{\"shape\":" + arrays, 0)});
  files.push_back({"a tensor must be an object", file_of("{\"a\":" + arrays, 0)});
  return files;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("safetensors: what is written comes back") {
    const TemporaryFolder folder;
    const std::vector<std::uint8_t> bytes{1, 2, 255};
    const std::vector<float> floats{1.5f, -0.0f, INFINITY, 3e-42f, 5, 6};
    const std::vector<double> doubles{M_PI};
    const std::vector<std::int64_t> longs{INT64_MIN, INT64_MAX};
    const std::vector<std::int32_t> ints{-7};
    const std::vector<f16> halves{to_f16(0.5f), to_f16(65504)};
    const std::vector<bf16> brains{to_bf16(-2), to_bf16(1e30f)};
    const Metadata metadata{{"config", "{\"d_model\": 128}"}, {"quote\"", "line\n\xc3\xa9"}};
    const auto path = folder / "a.safetensors";
    write_safetensors(path,
                      {{"bytes", DType::u8, {3}, bytes.data()},
                       {"floats", DType::f32, {1, 2, 1, 3, 1}, floats.data()},
                       {"scalar", DType::f64, {}, doubles.data()},
                       {"longs", DType::i64, {2}, longs.data()},
                       {"ints", DType::i32, {1}, ints.data()},
                       {"halves", DType::f16, {2}, halves.data()},
                       {"brains", DType::bf16, {2, 1}, brains.data()},
                       {"nothing", DType::f32, {4, 0}, nullptr},
                       {"na\"me\\\xc3\xa9", DType::u8, {1}, bytes.data()}},
                      metadata);

    const SafetensorsFile file(path);
    CHECK(file.metadata() == metadata);
    REQUIRE(file.tensors().size() == 9);
    for (const StoredTensor& tensor : file.tensors()) {
      INFO(tensor.name);
      CHECK(tensor.offset % static_cast<std::int64_t>(size_of(*tensor.type)) == 0);
    }
    CHECK(file.read<std::uint8_t>("bytes") == bytes);
    CHECK(file.read<float>("floats") == floats);
    CHECK(std::signbit(file.read<float>("floats")[1]));
    CHECK(file.read<double>("scalar") == doubles);
    CHECK(file.read<std::int64_t>("longs") == longs);
    CHECK(file.read<std::int32_t>("ints") == ints);
    CHECK(file.read<f16>("halves")[1].bits == halves[1].bits);
    CHECK(file.read<bf16>("brains")[1].bits == brains[1].bits);
    CHECK(file.read<float>("nothing").empty());
    CHECK(file.read<std::uint8_t>("na\"me\\\xc3\xa9").size() == 1);
    CHECK(file.at("floats").shape == std::vector<std::int64_t>{1, 2, 1, 3, 1});
    CHECK(file.at("scalar").shape.empty());
    CHECK(file.at("nothing").shape == std::vector<std::int64_t>{4, 0});

    CHECK(file.read_floats<double>("floats")[0] == 1.5);
    CHECK(file.read_floats<float>("scalar")[0] == static_cast<float>(M_PI));
    CHECK(file.read_floats<double>("halves") == std::vector<double>{0.5, 65504});
    CHECK(file.read_floats<float>("brains")[0] == -2);
  }

  TEST_CASE("safetensors: an empty file is one, and padding is spaces") {
    const TemporaryFolder folder;
    write_safetensors(folder / "a", {});
    CHECK(get(folder / "a") == file_of("{}      ", 0));
    CHECK(SafetensorsFile(folder / "a").tensors().empty());
  }

  TEST_CASE("safetensors: foreign layouts that are right are read") {
    const TemporaryFolder folder;
    // Unaligned, out of order, no padding, an empty tensor between, spaces inside.
    const std::string json = "{\"b\" : " + entry("\"F32\"", "[ 1 ]", "[3, 7]") +
                             ",\"e\":" + u8(3, 3) + ",\"a\":" + u8(0, 3) +
                             ",\"c\":" + entry("\"BOOL\"", "[1]", "[7,8]") +
                             ",\"d\":" + entry("\"F4\"", "[2]", "[8,9]") + "}";
    const auto path = put(folder / "a", file_of(json, 9));
    const SafetensorsFile file(path);
    std::string order;
    for (const StoredTensor& tensor : file.tensors()) order += tensor.name;
    CHECK(order == "aebcd");
    std::uint32_t bits = 0;
    file.read_bytes(file.at("b"), &bits);
    CHECK(bits == 0x01010101);
    CHECK(file.find("z") == nullptr);
    // Listed, not read.
    CHECK(file.at("c").dtype == "BOOL");
    CHECK_FALSE(file.at("c").type);
    expect_fault(Fault::data, "got BOOL in 'c'", [&] { file.read_bytes(file.at("c"), &bits); });
    expect_fault(Fault::data, "'c' must be U8, got BOOL", [&] { file.read<std::uint8_t>("c"); });
    expect_fault(Fault::data, "'b' must be F64, got F32 [1]", [&] { file.read<double>("b"); });
    expect_fault(Fault::data, "'a' must be F64, F32, F16 or BF16, got U8 [3]",
                 [&] { file.read_floats<float>("a"); });
    expect_fault(Fault::data, "tensor 'z' must be in the file", [&] { file.at("z"); });
    std::filesystem::resize_file(path, std::filesystem::file_size(path) - 8);
    expect_fault(Fault::data, "shrunk", [&] { file.read<float>("b"); });
  }

  TEST_CASE("safetensors: malformed files are data faults that name the path") {
    const TemporaryFolder folder;
    for (const Malformed& file : malformed_files()) {
      const auto path = put(folder / "bad.safetensors", file.bytes);
      expect_fault(Fault::data, file.phrase, [&] { SafetensorsFile{path}; });
      expect_fault(Fault::data, "[safetensors] ", [&] { SafetensorsFile{path}; });
      expect_fault(Fault::data, concat("(", path.string(), ")"), [&] { SafetensorsFile{path}; });
    }
    expect_fault(Fault::data, "No such file", [&] { SafetensorsFile{folder / "missing"}; });
    expect_fault(Fault::data, "a folder", [&] { SafetensorsFile{folder.path()}; });
  }

  TEST_CASE("safetensors: messages stay short and printable") {
    const std::string name(5000, 'n');
    try {
      parse_safetensors_header("{\"\x7f\\u009b" + name + "\":1}", 0, "a");
      FAIL("nothing was thrown");
    } catch (const Error& error) {
      const std::string message = error.what();
      CHECK(message.size() < 300);
      CHECK(message.find("???nnn") != std::string::npos);
    }
  }

  TEST_CASE("safetensors: damaged headers never do harm") {
    const std::string json =
        "{\"__metadata__\":{\"k\":\"v\",\"l\":\"w\"},\"a\":" + entry("\"F32\"", "[2,3]", "[0,24]") +
        ",\"b\":" + entry("\"BF16\"", "[]", "[24,26]") + ",\"c\":" + u8(26, 30) + "}";
    REQUIRE(parse_safetensors_header(json, 30, "a").tensors.size() == 3);
    expect_survives_damage(json, json.size(), 10'000, [](const std::string& copy) {
      parse_safetensors_header(copy, 30, "a");
    });
    const TemporaryFolder folder;
    expect_survives_damage(file_of(json, 30), 12, 500, [&](const std::string& copy) {
      const SafetensorsFile file(put(folder / "a", copy));
      for (const char* name : {"a", "b"}) file.read_floats<double>(name);
    });
  }

  TEST_CASE("safetensors: the writer refuses what no reader would take") {
    const TemporaryFolder folder;
    const float x = 1;
    const auto refused = [&](const std::string& phrase, const std::vector<TensorToStore>& tensors,
                             const Metadata& metadata = {}) {
      expect_fault(Fault::usage, phrase,
                   [&] { write_safetensors(folder / "a", tensors, metadata); });
    };
    const TensorToStore good{"a", DType::f32, {1}, &x};
    refused("got 'a' twice", {good, good});
    refused("got '__metadata__' twice", {{"__metadata__", DType::f32, {1}, &x}});
    refused("got [-1] for 'a'", {{"a", DType::f32, {-1}, &x}});
    refused("fit 64 bits", {{"a", DType::f32, {INT64_MAX, 2}, &x}});
    refused("must have data", {{"a", DType::f32, {1}, nullptr}});
    refused("must be UTF-8", {{"\xff", DType::f32, {1}, &x}});
    refused("must be UTF-8", {good}, {{"k", "\xc3"}});
    CHECK(std::filesystem::is_empty(folder.path()));
    expect_fault(Fault::runtime, "No such file",
                 [&] { write_safetensors(folder / "no/a", {good}); });
  }

  TEST_CASE("safetensors: the golden files, read and written again") {
    const TemporaryFolder folder;
    int files = 0;
    for (const auto& found : std::filesystem::directory_iterator(FM_SOURCE_DIR "/tests/golden")) {
      if (found.path().extension() != ".safetensors") continue;
      INFO(found.path().string());
      ++files;
      const SafetensorsFile file(found.path());
      std::vector<std::vector<std::uint8_t>> contents;
      std::vector<TensorToStore> tensors;
      for (const StoredTensor& tensor : file.tensors()) {
        REQUIRE(tensor.type);
        contents.emplace_back(static_cast<std::size_t>(tensor.bytes));
        file.read_bytes(tensor, contents.back().data());
        tensors.push_back({tensor.name, *tensor.type, tensor.shape, contents.back().data()});
      }
      write_safetensors(folder / "again", tensors, file.metadata());
      const SafetensorsFile again(folder / "again");
      CHECK(again.metadata() == file.metadata());
      REQUIRE(again.tensors().size() == file.tensors().size());
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const StoredTensor& tensor = again.at(tensors[i].name);
        std::vector<std::uint8_t> bytes(static_cast<std::size_t>(tensor.bytes));
        again.read_bytes(tensor, bytes.data());
        CHECK(tensor.shape == tensors[i].shape);
        CHECK(bytes == contents[i]);
      }
    }
    CHECK(files > 0);
  }
}

}  // namespace fm::test
