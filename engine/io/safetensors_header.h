// The JSON header of a safetensors file, parsed and checked against the bytes that follow it.
#pragma once

#include "engine/io/safetensors.h"

namespace fm {

constexpr std::int64_t kSafetensorsLengthBytes = 8;  // the u64 before the header
constexpr std::int64_t kSafetensorsHeaderLimit = 100'000'000;

struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;  // in the order of their bytes
  Metadata metadata;
};

// `data_bytes` follow the header. Offsets in the result count from the start of the file.
SafetensorsHeader parse_safetensors_header(const std::string& json, std::int64_t data_bytes,
                                           const std::filesystem::path& path);

// How a file spells a dtype.
const char* safetensors_name_of(DType type);

// A name from a file as a message may print it: short, and nothing a terminal would obey.
std::string printable(const std::string& text);

}  // namespace fm
