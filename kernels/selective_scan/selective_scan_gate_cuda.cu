// The gate alone: 16 bytes a thread and access where the shape allows it (N elements), one element
// otherwise.
#include "kernels/base/approx.cuh"
#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/selective_scan/selective_scan.h"

namespace fm {
namespace {

constexpr int kThreads = 256;

template <int N, class T>
__global__ void __launch_bounds__(kThreads) gate_kernel(const ScanGate<T> p) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned pieces = static_cast<unsigned>(p.channels / N);
  const std::int64_t row = index / pieces;
  if (row >= p.rows) return;
  const std::int64_t column = (index - row * pieces) * N;
  float y[N], z[N];
  load_wide(y, p.y + row * p.channels + column);
  load_wide(z, p.z + row * p.z_stride + column);
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = y[i] * z[i] * sigmoid_approx(z[i]);
  store_narrow(p.o + row * p.channels + column, y);
}

}  // namespace

template <class T>
void scan_gate(CudaQueue& queue, const ScanGate<T>& p) {
  constexpr int piece = 16 / sizeof(T);
  const auto aligned = [](const T* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  };
  const bool wide = p.channels % piece == 0 && p.z_stride % piece == 0 && aligned(p.y) &&
                    aligned(p.z) && aligned(p.o);
  const std::int64_t ctas = ceil_div(p.rows * (p.channels / (wide ? piece : 1)), kThreads);
  FM_CHECK(ctas <= kMaxGrid, "[selective_scan] at most 2^31 - 1 CTAs, got ", ctas);
  launch(queue, "scan_gate", wide ? gate_kernel<piece, T> : gate_kernel<1, T>,
         dim3(static_cast<unsigned>(ctas)), kThreads, 0, p);
}

template void scan_gate(CudaQueue&, const ScanGate<float>&);
template void scan_gate(CudaQueue&, const ScanGate<f16>&);
template void scan_gate(CudaQueue&, const ScanGate<bf16>&);

}  // namespace fm
