// Sizes and work of cast and fill. Results are exact: rounding to nearest even leaves no choice.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/cast/cast.h"

namespace fm {

inline constexpr std::int64_t kCastCases[] = {1, 7, 196, 1021, 150528};
inline constexpr std::int64_t kCastPaper = 6'000'000;  // parameters, about

inline Work cast_work(std::int64_t count, DType from, DType to) {
  return {static_cast<double>(count) * static_cast<double>(size_of(from) + size_of(to)), 0, 0};
}
inline Work fill_work(std::int64_t count, DType type) {
  return {static_cast<double>(count) * static_cast<double>(size_of(type)), 0, 0};
}

}  // namespace fm
