#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/linear_combination/linear_combination.h"

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxTerms = 5;

__device__ __forceinline__ float combine_one(const LinearCombination<float>& p, std::int64_t i) {
  float sum = p.factor[0] * p.x[0][i];
#pragma unroll
  for (int term = 1; term < kMaxTerms; ++term)
    if (term < p.terms) sum += p.factor[term] * p.x[term][i];
  return sum;
}

// A thread owns kWide neighbouring elements, the last one the rest of the array; it has read all of
// them when it writes, so `out` may be an input.
template <int kWide>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Deferred<LinearCombination<float>> deferred) {
  const LinearCombination<float>& p = deferred.wait();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide;
  if (first + kWide > p.count) {
    for (std::int64_t i = first; i < p.count; ++i) p.out[i] = combine_one(p, i);
    return;
  }
  float sum[kWide], value[kWide];
  load_wide(value, p.x[0] + first);
#pragma unroll
  for (int i = 0; i < kWide; ++i) sum[i] = p.factor[0] * value[i];
#pragma unroll
  for (int term = 1; term < kMaxTerms; ++term) {
    if (term >= p.terms) continue;
    load_wide(value, p.x[term] + first);
#pragma unroll
    for (int i = 0; i < kWide; ++i) sum[i] += p.factor[term] * value[i];
  }
  store_narrow(p.out + first, sum);
}

template <int kWide>
void launch_combine(CudaQueue& queue, const LinearCombination<float>& p) {
  launch(queue, "linear_combination", combine_kernel<kWide>,
         static_cast<unsigned>(ceil_div(p.count, std::int64_t{kWide} * kThreads)), kThreads, 0, p);
}

bool aligned(const float* data) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Vec<float, 4>) == 0;
}

}  // namespace

template <class R>
void linear_combination(CudaQueue& queue, const LinearCombination<R>& p) {
  FM_CHECK(p.terms >= 1 && p.terms <= kMaxTerms, "[linear_combination] 1 to 5 terms, got ",
           p.terms);
  FM_CHECK(p.count >= 0, "[linear_combination] count must not be negative, got ", p.count);
  if (p.count == 0) return;
  bool wide = aligned(p.out);
  for (int term = 0; term < p.terms; ++term) wide = wide && aligned(p.x[term]);
  wide ? launch_combine<4>(queue, p) : launch_combine<1>(queue, p);
}

template void linear_combination(CudaQueue&, const LinearCombination<float>&);

}  // namespace fm
