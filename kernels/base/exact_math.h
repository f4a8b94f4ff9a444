// Float arithmetic and elementary functions with the same bits on host and device.
//
// Every operation is one correctly rounded add, multiply, fma, divide or square root of IEEE 754,
// which CUDA offers by name. A host compiler may contract a product that meets an addition into an
// fma, which would change the bits: no plain addition here has a product for an operand (products
// go into multiplications and fma alone), so there is nothing to contract. Keep it so.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FM_HOST_DEVICE inline
#endif

namespace fm::exact {

#if defined(__CUDA_ARCH__)
FM_HOST_DEVICE float add(float a, float b) {
  return __fadd_rn(a, b);
}
FM_HOST_DEVICE float mul(float a, float b) {
  return __fmul_rn(a, b);
}
FM_HOST_DEVICE float fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
FM_HOST_DEVICE float div(float a, float b) {
  return __fdiv_rn(a, b);
}
FM_HOST_DEVICE float sqrt(float a) {
  return __fsqrt_rn(a);
}
FM_HOST_DEVICE std::int32_t bits_of(float a) {
  return __float_as_int(a);
}
FM_HOST_DEVICE float from_bits(std::int32_t a) {
  return __int_as_float(a);
}
#else
FM_HOST_DEVICE float add(float a, float b) {
  return a + b;
}
FM_HOST_DEVICE float mul(float a, float b) {
  return a * b;
}
FM_HOST_DEVICE float fma(float a, float b, float c) {
  return std::fma(a, b, c);
}
FM_HOST_DEVICE float div(float a, float b) {
  return a / b;
}
FM_HOST_DEVICE float sqrt(float a) {
  return std::sqrt(a);
}
FM_HOST_DEVICE std::int32_t bits_of(float a) {
  return std::bit_cast<std::int32_t>(a);
}
FM_HOST_DEVICE float from_bits(std::int32_t a) {
  return std::bit_cast<float>(a);
}
#endif

// ln 2 in two parts: n times the first, which has 10 bits, is exact for |n| < 2^14.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// Natural logarithm of a positive normal number, within 2 ulp: x = 2^e m with m in
// [sqrt(1/2), sqrt(2)), and log(1 + f) = f - f^2 / 2 + f^3 P(f) with a minimax P.
FM_HOST_DEVICE float log(float x) {
  constexpr std::int32_t kSqrtHalf = 0x3f3504f3;  // the bits of sqrt(1/2)
  const std::int32_t shifted = bits_of(x) - kSqrtHalf;
  const float e = static_cast<float>(shifted >> 23);
  const float f = add(from_bits((shifted & 0x7fffff) + kSqrtHalf), -1.0f);
  float p = 0.0674663857f;
  p = fma(p, f, -0.116756514f);
  p = fma(p, f, 0.118881628f);
  p = fma(p, f, -0.124055892f);
  p = fma(p, f, 0.142195523f);
  p = fma(p, f, -0.166679963f);
  p = fma(p, f, 0.200021192f);
  p = fma(p, f, -0.250000089f);
  p = fma(p, f, 0.333333135f);
  const float square = mul(f, f);
  float tail = mul(mul(square, f), p);
  tail = fma(square, -0.5f, tail);
  tail = fma(e, kLn2Low, tail);
  return fma(e, kLn2High, add(f, tail));
}

// exp(x) within 2 ulp for |x| <= 80: x = n ln 2 + r with |r| <= ln 2 / 2.
FM_HOST_DEVICE float exp(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = fma(x, 1.44269504f, kMagic);
  const float n = add(shifted, -kMagic);
  const float r = fma(n, -kLn2Low, fma(n, -kLn2High, x));
  float p = 0.00139504788f;
  p = fma(p, r, 0.00836888235f);
  p = fma(p, r, 0.041666206f);
  p = fma(p, r, 0.166665196f);
  p = fma(p, r, 0.5f);
  p = add(fma(mul(r, r), p, r), 1.0f);
  return from_bits(bits_of(p) + (bits_of(shifted) - bits_of(kMagic)) * (1 << 23));
}

// 1 / (1 + exp(-x)) for |x| <= 80.
FM_HOST_DEVICE float sigmoid(float x) {
  return div(1.0f, add(1.0f, exp(-x)));
}

struct SinCos {
  float sine, cosine;
};

// Sine and cosine of 2 pi turn / 2^24 for a turn in [0, 2^24), each within 2 ulp: the nearest
// quarter is taken off exactly, and polynomials serve the rest, f quarter turns with |f| <= 1/2.
FM_HOST_DEVICE SinCos sin_cos_of_turn(std::uint32_t turn) {
  const std::uint32_t quarter = (turn + (1u << 21)) >> 22;
  const std::int32_t rest = static_cast<std::int32_t>(turn - (quarter << 22));
  const float f = mul(static_cast<float>(rest), 0x1p-22f), g = mul(f, f);
  constexpr float kHalfPiHigh = 1.57079637f, kHalfPiLow = -4.37113900e-8f;
  float s = 0.000158262541f;
  s = fma(s, g, -0.00468129758f);
  s = fma(s, g, 0.0796925873f);
  s = fma(s, g, -0.645964086f);
  s = fma(s, g, kHalfPiLow);
  s = fma(f, kHalfPiHigh, mul(f, s));
  float c = 0.000919165905f;
  c = fma(c, g, -0.0208634697f);
  c = fma(c, g, 0.2536695f);
  c = fma(c, g, -1.23370051f);
  c = fma(c, g, 1.0f);
  // A quarter turn maps (s, c) to (c, -s): swap on odd quarters, then set the signs by their bits.
  const bool odd = quarter & 1;
  const std::int32_t flip_sine = static_cast<std::int32_t>((quarter & 2) << 30);
  const std::int32_t flip_cosine = static_cast<std::int32_t>(((quarter + 1) & 2) << 30);
  return {from_bits(bits_of(odd ? c : s) ^ flip_sine),
          from_bits(bits_of(odd ? s : c) ^ flip_cosine)};
}

}  // namespace fm::exact
