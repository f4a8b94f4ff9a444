// N elements moved as one access: Vec<f16, 8> is a 16-byte load. The address must be aligned to the
// vector's size.
#pragma once

#include <type_traits>

#include "kernels/base/convert.cuh"

namespace fm {

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16, "Vec: one access moves at most 16 bytes");
  T at[N];
};

// Where something is in shared memory, as instructions that take such an address want it.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Two 16-bit elements, the first in the low half: one instruction an element, where taking them out
// of their vector one by one costs two.
template <class T>
__device__ __forceinline__ float2 widen_pair(unsigned pair) {
  if constexpr (std::is_same_v<T, f16>) return __half22float2(reinterpret_cast<__half2&>(pair));
  else return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <class T>
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
  if constexpr (std::is_same_v<T, f16>) {
    __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<unsigned&>(pair);
  } else {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<unsigned&>(pair);
  }
}

// `from` is in registers.
template <int N, class T>
__device__ __forceinline__ void widen_all(float (&to)[N], const Vec<T, N>& from) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const unsigned* pairs = reinterpret_cast<const unsigned*>(&from);
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float2 pair = widen_pair<T>(pairs[i / 2]);
      to[i] = pair.x;
      to[i + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(from.at[i]);
  }
}

template <int N, class T>
__device__ __forceinline__ void load_wide(float (&to)[N], const T* from) {
  const Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(from);  // one access, then in registers
  widen_all(to, v);
}

template <int N, class T>
__device__ __forceinline__ void store_narrow(T* to, const float (&from)[N]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    Vec<unsigned, N / 2> v;
#pragma unroll
    for (int i = 0; i < N; i += 2) v.at[i / 2] = narrow_pair<T>(from[i], from[i + 1]);
    *reinterpret_cast<Vec<unsigned, N / 2>*>(to) = v;
  } else {
    Vec<T, N> v;
#pragma unroll
    for (int i = 0; i < N; ++i) v.at[i] = narrow<T>(from[i]);
    *reinterpret_cast<Vec<T, N>*>(to) = v;
  }
}

}  // namespace fm
