// Elementary functions that a compiler can vectorise, for the CPU's float loops: branch-free and
// inline, unlike std::exp. The double overloads are the standard library's, so that one template
// serves as the reference in double and as the production path in float.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace fm {

// condition ? yes : no, in bits: the compiler turns a plain ?: with a constant arm into a branch,
// and the loop around it is no longer vectorised.
inline float select(bool condition, float yes, float no) {
  const std::int32_t mask = -static_cast<std::int32_t>(condition);
  return std::bit_cast<float>((std::bit_cast<std::int32_t>(yes) & mask) |
                              (std::bit_cast<std::int32_t>(no) & ~mask));
}

// exp(x) within 2 ulp over the whole range: gradual underflow to 0, overflow to infinity, NaN stays
// NaN. Range reduction after Cody and Waite 1980, chapter 6: x = n ln 2 + r with |r| <= ln 2 / 2,
// and a minimax polynomial for exp(r) (error 4e-9).
inline float fast_exp(float x) {
  constexpr float kLowest = -104.0f, kHighest = 89.0f;  // beyond: exactly 0 and infinity
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  x = select(x < kLowest, kLowest, x);
  x = select(x > kHighest, kHighest, x);
  const float shifted = x * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float q = 0.00138144556f;
  q = q * r + 0.00836878549f;
  q = q * r + 0.0416683964f;
  q = q * r + 0.166665196f;
  q = q * r + 0.49999994f;
  const float exp_r = (q * r) * r + r + 1.0f;
  // 2^n in two factors, since n runs from -150 to 128.
  const std::int32_t exponent =
      std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kMagic);
  const std::int32_t half = exponent >> 1;
  const float low = std::bit_cast<float>((half + 127) << 23);
  const float high = std::bit_cast<float>((exponent - half + 127) << 23);
  return exp_r * low * high;
}
inline double fast_exp(double x) {
  return std::exp(x);
}

// 1 / (1 + exp(-x)); exact limits 0 and 1.
template <class T>
inline T fast_sigmoid(T x) {
  return 1 / (1 + fast_exp(-x));
}

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), and x itself above 20; within a few ulp however
// small the result. log1p(e) = 2 atanh(e / (2 + e)), whose argument is at most 1/3: a minimax
// polynomial in its square (relative error 4e-9).
inline float fast_softplus(float x) {
  const float e = fast_exp(-std::fabs(x));
  const float s = e / (2.0f + e), square = s * s;
  float p = 0.140891671f;
  p = p * square + 0.139803007f;
  p = p * square + 0.200124547f;
  p = p * square + 0.333331585f;
  const float tail = 2.0f * (s + s * square * p);
  return select(x > 20.0f, x, select(x > 0.0f, x, 0.0f) + tail);
}
inline double fast_softplus(double x) {
  return x > 20 ? x : std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}

}  // namespace fm
