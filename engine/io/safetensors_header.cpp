#include "engine/io/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

namespace fm {
namespace {

struct Spelling {
  const char* name;
  int bits;  // an element's
  std::optional<DType> type;
};

constexpr Spelling kSpellings[] = {
    {"F64", 64, DType::f64},   {"F32", 32, DType::f32}, {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16}, {"I64", 64, DType::i64}, {"I32", 32, DType::i32},
    {"U8", 8, DType::u8},      {"BOOL", 8, {}},         {"I8", 8, {}},
    {"I16", 16, {}},           {"U16", 16, {}},         {"U32", 32, {}},
    {"U64", 64, {}},           {"C64", 64, {}},         {"F8_E4M3", 8, {}},
    {"F8_E5M2", 8, {}},        {"F8_E8M0", 8, {}},      {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},        {"F4", 4, {}},
};

const Spelling* spelling_of(const std::string& name) {
  for (const Spelling& s : kSpellings)
    if (name == s.name) return &s;
  return nullptr;
}

// What the header says of one tensor, before it is held against anything.
struct Entry {
  std::string name, dtype;
  std::vector<std::int64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Receives the parser's events. The format nests three deep and anything deeper is refused as it
// opens; nlohmann's DOM would keep the last of two equal keys, here both are seen.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::filesystem::path& path) : path_(path) {}

  std::vector<Entry> entries;
  Metadata metadata;

  bool start_object(std::size_t) override {
    if (at_ == At::start) at_ = At::top;
    else if (at_ == At::top && key_ == "__metadata__") at_ = At::metadata;
    else if (at_ == At::top) {
      entries.emplace_back().name = key_;
      at_ = At::tensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& name) override {
    key_ = name;
    if (at_ == At::top && !names_.insert(name).second) refuse_duplicate();
    if (at_ == At::metadata && metadata.count(name)) refuse_duplicate();
    if (at_ == At::tensor) {
      Entry& entry = entries.back();
      bool* seen = name == "dtype"          ? &entry.has_dtype
                   : name == "shape"        ? &entry.has_shape
                   : name == "data_offsets" ? &entry.has_offsets
                                            : nullptr;
      if (!seen)
        refuse("a tensor must have dtype, shape and data_offsets only, got '", printable(name),
               "' in '", printable(entry.name), "'");
      if (*seen) refuse_duplicate();
      *seen = true;
    }
    return true;
  }

  bool end_object() override {
    if (at_ == At::tensor) {
      const Entry& entry = entries.back();
      if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets)
        refuse("a tensor must have dtype, shape and data_offsets, got '", printable(entry.name),
               "' without ",
               !entry.has_dtype   ? "dtype"
               : !entry.has_shape ? "shape"
                                  : "data_offsets");
    }
    at_ = At::top;
    return true;
  }

  bool start_array(std::size_t) override {
    if (at_ == At::tensor && key_ == "shape") at_ = At::shape;
    else if (at_ == At::tensor && key_ == "data_offsets") at_ = At::offsets;
    else unexpected("an array");
    return true;
  }

  bool end_array() override {
    const Entry& entry = entries.back();
    if (at_ == At::offsets && entry.offsets.size() != 2)
      refuse("data_offsets must be [begin, end], got ", entry.offsets.size(), " numbers in '",
             printable(entry.name), "'");
    at_ = At::tensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ != At::shape && at_ != At::offsets) unexpected(std::to_string(value));
    if (value > static_cast<std::uint64_t>(INT64_MAX)) unexpected(std::to_string(value));
    std::vector<std::int64_t>& list =
        at_ == At::shape ? entries.back().shape : entries.back().offsets;
    list.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (at_ == At::metadata) metadata[key_] = value;
    else if (at_ == At::tensor && key_ == "dtype") entries.back().dtype = value;
    else unexpected("a string");
    return true;
  }

  bool number_integer(number_integer_t value) override { unexpected(std::to_string(value)); }
  bool number_float(number_float_t, const std::string& text) override {
    unexpected(printable(text));
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    refuse("the header must be JSON, got an error at its byte ", position, ": ",
           printable(error.what()));
  }

 private:
  enum class At { start, top, metadata, tensor, shape, offsets };

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(Fault::data, "[safetensors] ", parts..., " (", path_.string(), ")");
  }
  [[noreturn]] void refuse_duplicate() const {
    refuse("a key must not come twice in one object, got '", printable(key_), "' again");
  }
  [[noreturn]] void unexpected(const std::string& got) const {
    const char* rule = "the header must be an object of tensors";
    if (at_ == At::top) rule = "a tensor must be an object";
    if (at_ == At::metadata) rule = "metadata must be strings";
    if (at_ == At::tensor && key_ == "dtype") rule = "dtype must be a string";
    if (at_ == At::tensor && key_ != "dtype") rule = "shape and data_offsets must be arrays";
    if (at_ == At::shape || at_ == At::offsets)
      rule = "shape and data_offsets must be whole numbers from 0 to 2^63 - 1";
    if (entries.empty() || at_ == At::top || at_ == At::metadata)
      refuse(rule, ", got ", got, " for '", printable(key_), "'");
    refuse(rule, ", got ", got, " in '", printable(entries.back().name), "'");
  }

  const std::filesystem::path& path_;
  At at_ = At::start;
  std::string key_;
  std::set<std::string> names_;
};

// Its own dtype and shape against the bytes it claims.
StoredTensor checked(Entry& entry, std::int64_t data_bytes, const std::filesystem::path& path) {
  const auto refuse = [&](const auto&... parts) {
    fail(Fault::data, "[safetensors] ", parts..., " in '", printable(entry.name), "' (",
         path.string(), ")");
  };
  const Spelling* spelling = spelling_of(entry.dtype);
  if (!spelling) refuse("dtype must be a known one, got '", printable(entry.dtype), "'");
  const std::int64_t begin = entry.offsets[0], end = entry.offsets[1];
  if (begin > end || end > data_bytes)
    refuse("data_offsets must be begin <= end <= ", data_bytes, ", got [", begin, ", ", end, ")");
  std::int64_t elements = 1, bits = 0;
  bool overflow = false;
  for (const std::int64_t extent : entry.shape)
    overflow = overflow || __builtin_mul_overflow(elements, extent, &elements);
  overflow = overflow || __builtin_mul_overflow(elements, spelling->bits, &bits);
  if (overflow) refuse("shape must fit 64 bits, got ", shape_text(entry.shape));
  if (bits % 8 != 0 || bits / 8 != end - begin)
    refuse("data_offsets must span ", bits / 8.0, " bytes for ", entry.dtype, " ",
           shape_text(entry.shape), ", got ", end - begin);
  return {std::move(entry.name),
          std::move(entry.dtype),
          spelling->type,
          std::move(entry.shape),
          elements,
          begin,
          end - begin};
}

}  // namespace

SafetensorsHeader parse_safetensors_header(const std::string& json, std::int64_t data_bytes,
                                           const std::filesystem::path& path) {
  // nlohmann takes a NUL for the end of the text and would believe what stands before it.
  if (json.empty() || json.front() != '{' || json.find('\0') != std::string::npos)
    fail(Fault::data, "[safetensors] the header must start with { and be text, got '",
         printable(json.substr(0, 32)), "' (", path.string(), ")");
  HeaderReader reader(path);
  nlohmann::json::sax_parse(json, &reader);

  SafetensorsHeader header{{}, std::move(reader.metadata)};
  header.tensors.reserve(reader.entries.size());
  for (Entry& entry : reader.entries) header.tensors.push_back(checked(entry, data_bytes, path));
  // Empty tensors share their offset with a neighbour and come before it.
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const StoredTensor& a, const StoredTensor& b) {
                     return std::tie(a.offset, a.bytes) < std::tie(b.offset, b.bytes);
                   });
  std::int64_t end = 0;
  for (StoredTensor& tensor : header.tensors) {
    if (tensor.offset != end)
      fail(Fault::data, "[safetensors] tensors must follow one another without ",
           tensor.offset > end ? "a hole" : "overlap", ", got '", printable(tensor.name), "' at ",
           tensor.offset, " and the one before it ending at ", end, " (", path.string(), ")");
    end += tensor.bytes;
    tensor.offset += kSafetensorsLengthBytes + static_cast<std::int64_t>(json.size());
  }
  if (end != data_bytes)
    fail(Fault::data, "[safetensors] the file must end with its last tensor, got ",
         data_bytes - end, " bytes more (", path.string(), ")");
  return header;
}

const char* safetensors_name_of(DType type) {
  for (const Spelling& s : kSpellings)
    if (s.type == type) return s.name;
  return "?";
}

std::string printable(const std::string& text) {
  constexpr std::size_t kLongest = 120;
  std::string out = text.substr(0, kLongest);
  for (char& c : out)
    if (c < 0x20 || c > 0x7e) c = '?';
  return text.size() > kLongest ? out + "..." : out;
}

}  // namespace fm
