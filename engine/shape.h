// The extents of a tensor: up to four, outermost first, row-major.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/base/check.h"

namespace fm {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) {
    FM_CHECK(extents.size() <= kMaxRank, "[shape] at most 4 dimensions, got ", extents.size());
    for (const std::int64_t extent : extents) {
      FM_CHECK(extent >= 0, "[shape] extents must not be negative, got ", extent);
      at_[static_cast<std::size_t>(rank_++)] = extent;
    }
  }

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return at_[static_cast<std::size_t>(i)]; }
  std::int64_t back() const { return at_[static_cast<std::size_t>(rank_ - 1)]; }
  std::int64_t count() const {
    std::int64_t product = 1;
    for (int i = 0; i < rank_; ++i) product *= (*this)[i];
    return product;
  }
  std::int64_t rows() const {
    return rank_ ? count() / (back() ? back() : 1) : 1;
  }  // all but the last dimension

  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxRank> at_{};
  int rank_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ']';
}

}  // namespace fm
