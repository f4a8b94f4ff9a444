#include <algorithm>

#include "kernels/adamw/adamw_step.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 4096;  // elements a thread takes at once
constexpr int kLanes = 16;  // running sums: as many on every processor, so the bits are the same

template <class A>
inline double square_sum(const A* grad, std::int64_t count) {
  double lanes[kLanes] = {};
  for (std::int64_t i = 0; i < count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const A square = grad[i + j] * grad[i + j];
      lanes[j] += static_cast<double>(square);
    }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

FM_SIMD double square_sum_of(const float* grad, std::int64_t count) {
  return square_sum(grad, count);
}
double square_sum_of(const double* grad, std::int64_t count) {
  return square_sum(grad, count);
}

// Elements [begin, begin + kDecayChunk). The square roots stand alone, since their domain check
// (errno) keeps a loop from being vectorised.
template <class A>
inline void update_chunk(const AdamWUpdate<A>& p, const AdamWConstants<A>& k, std::int64_t begin) {
  const StepState& s = *p.state;
  const A factor = s.grad_factor, lr = s.lr, decay = s.ema_decay;
  const A correction1 = s.bias_correction1, correction2 = s.bias_correction2;
  const A weight_decay = p.decays[begin / kDecayChunk] ? k.weight_decay : A(0);
  const A* grad = p.grad + begin;
  A *master = p.master + begin, *m = p.m + begin, *v = p.v + begin;
  A root[kDecayChunk];
#pragma omp simd
  for (int i = 0; i < kDecayChunk; ++i) {
    const A g = grad[i] * factor;
    m[i] = k.beta1 * m[i] + k.rest1 * g;
    v[i] = k.beta2 * v[i] + k.rest2 * g * g;
    root[i] = v[i] / correction2;
  }
  for (int i = 0; i < kDecayChunk; ++i) root[i] = std::sqrt(root[i]);
#pragma omp simd
  for (int i = 0; i < kDecayChunk; ++i)
    master[i] -= lr * (m[i] / correction1 / (root[i] + k.eps) + weight_decay * master[i]);
  if (p.ema) {
    A* ema = p.ema + begin;
#pragma omp simd
    for (int i = 0; i < kDecayChunk; ++i) ema[i] = decay * ema[i] + (1 - decay) * master[i];
  }
  if (p.compute) std::copy_n(master, kDecayChunk, p.compute + begin);
}

FM_SIMD void update_range(const AdamWUpdate<float>& p, const AdamWConstants<float>& k,
                          std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; i += kDecayChunk) update_chunk(p, k, i);
}
void update_range(const AdamWUpdate<double>& p, const AdamWConstants<double>& k, std::int64_t begin,
                  std::int64_t end) {
  for (std::int64_t i = begin; i < end; i += kDecayChunk) update_chunk(p, k, i);
}

}  // namespace

std::size_t optimizer_prepare_workspace(std::int64_t) {
  return kNormPartials * sizeof(double);
}

template <class A>
void optimizer_prepare(CpuQueue& queue, const OptimizerPrepare<A>& p) {
  check_optimizer_prepare(p);
  auto* partials = static_cast<double*>(p.workspace);
  const std::int64_t chunks = p.count / kDecayChunk;
  const std::int64_t piece =
      std::max(kGrain, (chunks + kNormPartials - 1) / kNormPartials * kDecayChunk);
  parallel_for(queue, p.count, piece, [&](std::int64_t begin, std::int64_t end) {
    partials[begin / piece] = square_sum_of(p.grad + begin, end - begin);
  });
  double sum = 0;
  for (std::int64_t i = 0; i < (p.count + piece - 1) / piece; ++i) sum += partials[i];
  const double norm = finish_step(*p.state, p.settings, sum, *p.loss, p.ring, p.ring_size);
  if (p.grad_norm) *p.grad_norm = static_cast<A>(norm);
}

template <class T>
void adamw_update(CpuQueue& queue, const AdamWUpdate<T>& p) {
  check_adamw_count(p.count);
  if (p.state->overflow) return;
  const AdamWConstants<T> constants(p.settings);
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    update_range(p, constants, begin, end);
  });
}

template void optimizer_prepare(CpuQueue&, const OptimizerPrepare<float>&);
template void optimizer_prepare(CpuQueue&, const OptimizerPrepare<double>&);
template void adamw_update(CpuQueue&, const AdamWUpdate<float>&);
template void adamw_update(CpuQueue&, const AdamWUpdate<double>&);

}  // namespace fm
