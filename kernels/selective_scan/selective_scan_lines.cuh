// Rows of global arrays, addressed with little arithmetic.
#pragma once

#include "kernels/selective_scan/selective_scan.cuh"

namespace fm::scan {

// Rows of an array; the row's number and the row's bytes fit 31 bits, so that an address costs one
// multiply-add.
template <class T>
struct Lines {
  const T* base;
  int bytes;  // from row to row

  static Lines of(const T* base, std::int64_t stride) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(T));
    FM_CHECK(bytes <= kMaxGrid, "[selective_scan] a token may take 2^31 - 1 bytes, got ", bytes);
    return {base, static_cast<int>(bytes)};
  }
  __device__ __forceinline__ const T* at(int row, int column) const {
    const auto* start = reinterpret_cast<const unsigned char*>(base);
    return reinterpret_cast<const T*>(start + static_cast<std::int64_t>(row) * bytes) + column;
  }
};

}  // namespace fm::scan
