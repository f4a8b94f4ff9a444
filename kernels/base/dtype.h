// Element types: the enumeration, the C++ types behind it, and host conversions.
//
// f16 and bf16 are storage only, so that headers need no CUDA; kernels/base/convert.cuh does
// arithmetic on them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fm {

enum class DType : std::uint8_t { f32, f16, bf16, f64, u8, i32, i64 };

struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};

// What sums, statistics, states and gradients of parameters are kept in: double for double, float
// otherwise.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  else if constexpr (std::is_same_v<T, f16>) return DType::f16;
  else if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
  else if constexpr (std::is_same_v<T, double>) return DType::f64;
  else if constexpr (std::is_same_v<T, std::uint8_t>) return DType::u8;
  else if constexpr (std::is_same_v<T, std::int32_t>) return DType::i32;
  else if constexpr (std::is_same_v<T, std::int64_t>) return DType::i64;
  else static_assert(!sizeof(T), "dtype_of: not an element type");
}

constexpr std::size_t size_of(DType type) {
  switch (type) {
    case DType::u8: return 1;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f64:
    case DType::i64: return 8;
  }
  return 0;
}

constexpr const char* name_of(DType type) {
  switch (type) {
    case DType::f32: return "fp32";
    case DType::f16: return "fp16";
    case DType::bf16: return "bf16";
    case DType::f64: return "fp64";
    case DType::u8: return "uint8";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
  }
  return "?";
}

// The accumulation type of a compute type: see acc_t.
constexpr DType acc_dtype(DType type) {
  return type == DType::f64 ? DType::f64 : DType::f32;
}

// Round to nearest even; overflow becomes infinity, NaN stays NaN.
f16 to_f16(float value);
bf16 to_bf16(float value);
float to_float(f16 value);
inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

}  // namespace fm
