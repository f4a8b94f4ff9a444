// What the two forward kernels of the selective scan share.
#pragma once

#include "kernels/selective_scan/selective_scan_lines.cuh"

namespace fm::scan {

enum ForwardRow { kDt, kU, kZ, kForwardRows };

template <class T>
struct ForwardArgs {
  ScanForward<T> p;
  int chunks;
  const float* start = nullptr;  // states at chunk starts; null: zero
  Lines<T> rows[kForwardRows] = {}, b = {}, c = {}, low = {};
  int bc_direction = 0;
  int rank = 0;  // of dt's projection; 0: dt is given
  bool wide_channels = false, wide_states = false, wide_low = false, wide_out = false;
};

template <int kWide, class T>
__device__ __forceinline__ void save_state(T* to, const float (&h)[kWide]) {
  if constexpr (std::is_same_v<T, f16>) {
    Vec<unsigned, kWide / 2> packed;
#pragma unroll
    for (int i = 0; i < kWide / 2; ++i) packed.at[i] = state_pair(h[2 * i], h[2 * i + 1]);
    *reinterpret_cast<Vec<unsigned, kWide / 2>*>(to) = packed;
  } else {
    store_narrow(to, h);
  }
}

// The narrow tile (selective_scan_narrow_cuda.cu): the recurrent path of shapes that leave the wide
// one without enough warps.
template <class T>
void forward_narrow(CudaQueue&, const ForwardArgs<T>&);

}  // namespace fm::scan
