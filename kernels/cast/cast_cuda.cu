#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/cast/cast.h"

namespace fm {
namespace {

constexpr int kThreads = 256;

// A thread owns kWide neighbouring elements; the last one the rest of the array.
template <class From, class To, int kWide>
__global__ void __launch_bounds__(kThreads) cast_kernel(Deferred<Cast<From, To>> deferred) {
  const Cast<From, To>& p = deferred.wait();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide;
  if (first + kWide <= p.count) {
    float value[kWide];
    load_wide(value, p.from + first);
    store_narrow(p.to + first, value);
  } else {
    for (std::int64_t i = first; i < p.count; ++i) p.to[i] = narrow<To>(widen(p.from[i]));
  }
}

template <class T, int kWide>
__global__ void __launch_bounds__(kThreads) fill_kernel(Deferred<Fill<T>> deferred) {
  const Fill<T>& p = deferred.wait();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide;
  if (first + kWide <= p.count) {
    Vec<T, kWide> value;
#pragma unroll
    for (int i = 0; i < kWide; ++i) value.at[i] = p.value;
    *reinterpret_cast<Vec<T, kWide>*>(p.to + first) = value;
  } else {
    for (std::int64_t i = first; i < p.count; ++i) p.to[i] = p.value;
  }
}

// Whether `elements` of T at the address can be one access.
template <class T>
bool aligned(const T* data, int elements) {
  return reinterpret_cast<std::uintptr_t>(data) % (elements * sizeof(T)) == 0;
}

unsigned blocks(std::int64_t count, int wide) {
  return static_cast<unsigned>(ceil_div(count, static_cast<std::int64_t>(wide) * kThreads));
}

}  // namespace

template <class From, class To>
void cast(CudaQueue& queue, const Cast<From, To>& p) {
  FM_CHECK(p.count >= 0, "[cast] count must not be negative, got ", p.count);
  if (p.count == 0) return;
  constexpr int kWide = 4;  // 16 bytes of the wider type
  if (aligned(p.from, kWide) && aligned(p.to, kWide))
    launch(queue, "cast", cast_kernel<From, To, kWide>, blocks(p.count, kWide), kThreads, 0, p);
  else launch(queue, "cast", cast_kernel<From, To, 1>, blocks(p.count, 1), kThreads, 0, p);
}

template <class T>
void fill(CudaQueue& queue, const Fill<T>& p) {
  FM_CHECK(p.count >= 0, "[fill] count must not be negative, got ", p.count);
  if (p.count == 0) return;
  constexpr int kWide = 16 / sizeof(T);
  if (aligned(p.to, kWide))
    launch(queue, "fill", fill_kernel<T, kWide>, blocks(p.count, kWide), kThreads, 0, p);
  else launch(queue, "fill", fill_kernel<T, 1>, blocks(p.count, 1), kThreads, 0, p);
}

template void cast(CudaQueue&, const Cast<float, float>&);
template void cast(CudaQueue&, const Cast<float, f16>&);
template void cast(CudaQueue&, const Cast<float, bf16>&);
template void cast(CudaQueue&, const Cast<f16, float>&);
template void cast(CudaQueue&, const Cast<bf16, float>&);
template void fill(CudaQueue&, const Fill<float>&);
template void fill(CudaQueue&, const Fill<std::int32_t>&);

}  // namespace fm
