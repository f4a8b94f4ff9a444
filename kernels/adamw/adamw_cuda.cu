#include <algorithm>

#include "kernels/adamw/adamw_step.h"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 4;  // floats of a 16-byte access; count is a multiple of kDecayChunk

__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(Deferred<OptimizerPrepare<float>> deferred) {
  const OptimizerPrepare<float>& p = deferred.wait();
  __shared__ double shared[kThreads / kWarp];
  double sum = 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads * kWide;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide;
       i < p.count; i += stride) {
    float g[kWide];
    load_wide(g, p.grad + i);
    sum += (g[0] * g[0] + g[1] * g[1]) + (g[2] * g[2] + g[3] * g[3]);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) static_cast<double*>(p.workspace)[blockIdx.x] = sum;
}

// One block adds the partial sums in a fixed order; its first thread decides.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Deferred<OptimizerPrepare<float>> deferred, int partials) {
  const OptimizerPrepare<float>& p = deferred.wait();
  __shared__ double shared[kThreads / kWarp];
  double sum = 0;
  for (int i = threadIdx.x; i < partials; i += kThreads)
    sum += static_cast<const double*>(p.workspace)[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x != 0) return;
  StepState state = *p.state;
  const double norm = finish_step(state, p.settings, sum, *p.loss, p.ring, p.ring_size);
  *p.state = state;
  if (p.grad_norm) *p.grad_norm = static_cast<float>(norm);
}

// A thread owns four neighbouring parameters. Memory-bound: 28 bytes a parameter, 34 with the
// compute copy of a 16-bit type and 42 with the EMA as well, so the divisions and the square root
// are IEEE's. Each fma is written out, so that every T gives the same master weights.
template <class T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Deferred<AdamWUpdate<T>> deferred, AdamWConstants<float> k) {
  const AdamWUpdate<T>& p = deferred.wait();
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide;
  if (i >= p.count || p.state->overflow) return;
  const float factor = p.state->grad_factor, lr = p.state->lr, decay = p.state->ema_decay;
  const float inverse1 = 1.0f / p.state->bias_correction1;
  const float inverse2 = 1.0f / p.state->bias_correction2;
  const float weight_decay = p.decays[i / kDecayChunk] ? k.weight_decay : 0.0f;
  float grad[kWide], master[kWide], m[kWide], v[kWide];
  load_wide(grad, p.grad + i);
  load_wide(master, p.master + i);
  load_wide(m, p.m + i);
  load_wide(v, p.v + i);
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    const float g = grad[j] * factor;
    m[j] = fmaf(k.beta1, m[j], k.rest1 * g);
    v[j] = fmaf(k.beta2, v[j], k.rest2 * g * g);
    const float step = m[j] * inverse1 / (sqrtf(v[j] * inverse2) + k.eps);
    master[j] = fmaf(-lr, fmaf(weight_decay, master[j], step), master[j]);
  }
  store_narrow(p.master + i, master);
  store_narrow(p.m + i, m);
  store_narrow(p.v + i, v);
  if (p.compute) store_narrow(p.compute + i, master);
  if (p.ema) {
    float ema[kWide];
    load_wide(ema, p.ema + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) ema[j] = fmaf(decay, ema[j], (1.0f - decay) * master[j]);
    store_narrow(p.ema + i, ema);
  }
}

}  // namespace

template <class A>
void optimizer_prepare(CudaQueue& queue, const OptimizerPrepare<A>& p) {
  check_optimizer_prepare(p);
  const int partials =
      static_cast<int>(std::min<std::int64_t>(kNormPartials, ceil_div(p.count, kWide * kThreads)));
  launch(queue, "optimizer_prepare", square_sum_kernel, dim3(partials), kThreads, 0, p);
  launch(queue, "optimizer_finish", finish_kernel, dim3(1), kThreads, 0, p, partials);
}

template <class T>
void adamw_update(CudaQueue& queue, const AdamWUpdate<T>& p) {
  check_adamw_count(p.count);
  const std::int64_t blocks = ceil_div(p.count, kWide * kThreads);
  FM_CHECK(blocks <= kMaxGrid, "[adamw] too many parameters for one call, got ", p.count);
  launch(queue, "adamw_update", update_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0,
         p, AdamWConstants<float>(p.settings));
}

template void optimizer_prepare(CudaQueue&, const OptimizerPrepare<float>&);
template void adamw_update(CudaQueue&, const AdamWUpdate<float>&);
template void adamw_update(CudaQueue&, const AdamWUpdate<f16>&);
template void adamw_update(CudaQueue&, const AdamWUpdate<bf16>&);

}  // namespace fm
