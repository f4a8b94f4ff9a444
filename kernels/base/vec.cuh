// N elements moved as one access: Vec<f16, 8> is a 16-byte load. The address must be aligned to the
// vector's size.
#pragma once

#include "kernels/base/convert.cuh"

namespace fm {

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16, "Vec: one access moves at most 16 bytes");
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ void load_wide(float (&to)[N], const T* from) {
  const auto v = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(v.at[i]);
}

template <int N, class T>
__device__ __forceinline__ void store_narrow(T* to, const float (&from)[N]) {
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; ++i) v.at[i] = narrow<T>(from[i]);
  *reinterpret_cast<Vec<T, N>*>(to) = v;
}

}  // namespace fm
