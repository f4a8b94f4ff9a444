#include "engine/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/safetensors_header.h"

namespace fm {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are read as they lie");

SafetensorsHeader read_header(const InputFile& file) {
  const std::string where = " (" + file.path().string() + ")";
  if (file.size() < kSafetensorsLengthBytes)
    fail(Fault::data, "[safetensors] a file must have at least 8 bytes, got ", file.size(), where);
  std::uint64_t length = 0;
  file.read(0, &length, kSafetensorsLengthBytes);
  const std::int64_t rest = file.size() - kSafetensorsLengthBytes;
  if (length > static_cast<std::uint64_t>(kSafetensorsHeaderLimit))
    fail(Fault::data, "[safetensors] the header must have at most ", kSafetensorsHeaderLimit,
         " bytes, got ", length, where);
  if (length > static_cast<std::uint64_t>(rest))
    fail(Fault::data, "[safetensors] the header must lie inside the file, got ", length,
         " bytes of header in ", file.size(), " bytes of file", where);
  std::string json(static_cast<std::size_t>(length), '\0');
  file.read(kSafetensorsLengthBytes, json.data(), static_cast<std::int64_t>(length));
  return parse_safetensors_header(json, rest - static_cast<std::int64_t>(length), file.path());
}

// `count` elements of type From, converted one by one.
template <class From, class T, class Convert>
std::vector<T> converted(const SafetensorsFile& file, const StoredTensor& tensor, Convert convert) {
  std::vector<From> stored(static_cast<std::size_t>(tensor.elements));
  file.read_bytes(tensor, stored.data());
  std::vector<T> values(stored.size());
  std::transform(stored.begin(), stored.end(), values.begin(),
                 [&](From x) { return static_cast<T>(convert(x)); });
  return values;
}

std::int64_t bytes_of(const TensorToStore& tensor) {
  auto bytes = static_cast<std::int64_t>(size_of(tensor.type));
  for (const std::int64_t extent : tensor.shape)
    FM_CHECK(extent >= 0 && !__builtin_mul_overflow(bytes, extent, &bytes),
             "[safetensors] shape must be >= 0 and fit 64 bits, got ", shape_text(tensor.shape),
             " for '", tensor.name, "'");
  return bytes;
}

// A JSON string literal.
std::string quoted(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(Fault::usage, "[safetensors] names and metadata must be UTF-8, got '", printable(text),
         "'");
  }
}

// The header, padded with spaces so that the tensors start at a multiple of 8 bytes.
std::string header_text(const std::vector<const TensorToStore*>& tensors,
                        const Metadata& metadata) {
  std::string json = "{";
  const auto separate = [&json] {
    if (json.back() != '{') json += ',';
  };
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      separate();
      json += quoted(key) + ':' + quoted(value);
    }
    json += '}';
  }
  std::int64_t begin = 0;
  for (const TensorToStore* tensor : tensors) {
    const std::int64_t end = begin + bytes_of(*tensor);
    separate();
    json += quoted(tensor->name) + ":{\"dtype\":\"" + safetensors_name_of(tensor->type) +
            "\",\"shape\":" + nlohmann::json(tensor->shape).dump() + ",\"data_offsets\":[" +
            std::to_string(begin) + ',' + std::to_string(end) + "]}";
    begin = end;
  }
  json += '}';
  json.append((8 - json.size() % 8) % 8, ' ');
  return json;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  SafetensorsHeader header = read_header(file_);
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

const StoredTensor* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const StoredTensor& SafetensorsFile::at(const std::string& name) const {
  const StoredTensor* tensor = find(name);
  if (!tensor)
    fail(Fault::data, "[safetensors] tensor '", printable(name), "' must be in the file, got ",
         tensors_.size(), " others (", path().string(), ")");
  return *tensor;
}

void SafetensorsFile::read_bytes(const StoredTensor& tensor, void* to) const {
  if (!tensor.type)
    fail(Fault::data, "[safetensors] dtype must be F64, F32, F16, BF16, I64, I32 or U8, got ",
         tensor.dtype, " in '", printable(tensor.name), "' (", path().string(), ")");
  file_.read(tensor.offset, to, tensor.bytes);
}

void SafetensorsFile::require(const StoredTensor& tensor, DType type) const {
  if (tensor.type != type)
    fail(Fault::data, "[safetensors] '", printable(tensor.name), "' must be ",
         safetensors_name_of(type), ", got ", tensor.dtype, " ", shape_text(tensor.shape), " (",
         path().string(), ")");
}

template <class T>
std::vector<T> SafetensorsFile::read_floats(const std::string& name) const {
  const StoredTensor& tensor = at(name);
  const auto same = [](auto x) { return x; };
  const auto widen = [](auto x) { return to_float(x); };
  if (tensor.type == DType::f64) return converted<double, T>(*this, tensor, same);
  if (tensor.type == DType::f32) return converted<float, T>(*this, tensor, same);
  if (tensor.type == DType::f16) return converted<f16, T>(*this, tensor, widen);
  if (tensor.type == DType::bf16) return converted<bf16, T>(*this, tensor, widen);
  fail(Fault::data, "[safetensors] '", printable(name), "' must be F64, F32, F16 or BF16, got ",
       tensor.dtype, " ", shape_text(tensor.shape), " (", path().string(), ")");
}

template std::vector<float> SafetensorsFile::read_floats<float>(const std::string&) const;
template std::vector<double> SafetensorsFile::read_floats<double>(const std::string&) const;

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToStore>& tensors,
                       const Metadata& metadata) {
  std::set<std::string> names{"__metadata__"};
  std::vector<const TensorToStore*> order;
  for (const TensorToStore& tensor : tensors) {
    FM_CHECK(names.insert(tensor.name).second,
             "[safetensors] names must differ from one another and from __metadata__, got '",
             tensor.name, "' twice");
    FM_CHECK(tensor.data || bytes_of(tensor) == 0, "[safetensors] a tensor must have data, got '",
             tensor.name, "' without");
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const TensorToStore* a, const TensorToStore* b) {
    return size_of(a->type) > size_of(b->type);
  });
  const std::string json = header_text(order, metadata);
  const std::uint64_t length = json.size();
  FM_CHECK(length <= static_cast<std::uint64_t>(kSafetensorsHeaderLimit),
           "[safetensors] the header must have at most ", kSafetensorsHeaderLimit, " bytes, got ",
           length);

  AtomicFile file(path);
  file.write(&length, sizeof(length));
  file.write(json);
  for (const TensorToStore* tensor : order)
    file.write(tensor->data, static_cast<std::size_t>(bytes_of(*tensor)));
  file.commit();
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  constexpr std::size_t kMost = 8;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), kMost); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() > kMost ? ", ...]" : "]");
}

}  // namespace fm
