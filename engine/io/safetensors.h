// safetensors: named tensors and string metadata in one file.
//
// Layout: u64 little-endian N; N bytes of JSON `{"name": {"dtype", "shape", "data_offsets"}, ...,
// "__metadata__": {string: string}}`; the tensors' bytes without a hole. A file comes from anywhere
// and is believed only after all of it is checked; every defect is Fault::data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/atomic_file.h"
#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace fm {

using Metadata = std::map<std::string, std::string>;

// One tensor of a file, as its header describes it. Row-major; no dimensions: one element.
struct StoredTensor {
  std::string name;
  std::string dtype;          // as the file spells it: "F32"
  std::optional<DType> type;  // none for a dtype that is listed but not read ("BOOL", "F8_E4M3")
  std::vector<std::int64_t> shape;
  std::int64_t elements = 0;
  std::int64_t offset = 0;  // of its first byte in the file
  std::int64_t bytes = 0;
};

class SafetensorsFile {
 public:
  // Reads and checks the header; the tensors' bytes stay on the disk until asked for.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the file's order
  const Metadata& metadata() const { return metadata_; }

  const StoredTensor* find(const std::string& name) const;  // null where there is none
  const StoredTensor& at(const std::string& name) const;    // Fault::data where there is none

  // The raw bytes into `to`, which holds tensor.bytes.
  void read_bytes(const StoredTensor& tensor, void* to) const;

  // A tensor of exactly T's dtype.
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const StoredTensor& tensor = at(name);
    require(tensor, dtype_of<T>());
    std::vector<T> values(static_cast<std::size_t>(tensor.elements));
    read_bytes(tensor, values.data());
    return values;
  }

  // A tensor of any floating dtype, each element converted to T (float or double).
  template <class T>
  std::vector<T> read_floats(const std::string& name) const;

 private:
  void require(const StoredTensor& tensor, DType type) const;

  InputFile file_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t> index_;  // name -> place in tensors_
  Metadata metadata_;
};

// A tensor to be written: `data` is in host memory, row-major.
struct TensorToStore {
  std::string name;
  DType type;
  std::vector<std::int64_t> shape;
  const void* data;
};

// Writes the file through AtomicFile. Tensors keep their order within a size of element, larger
// elements first, so that each is aligned in the file.
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToStore>& tensors,
                       const Metadata& metadata = {});

// A shape as messages print it: `[64, 196, 128]`.
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace fm
