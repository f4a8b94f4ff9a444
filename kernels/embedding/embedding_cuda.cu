#include "kernels/base/convert.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/embedding/embedding.h"

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kTableThreads = 64;  // columns a block of label_backward owns

__device__ __forceinline__ int row_of(std::int32_t label, int classes) {
  return label >= 0 && label < classes ? label : classes;
}

// A thread owns one frequency of one image. Double arithmetic: a few thousand angles a step.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sinusoid_kernel(Deferred<SinusoidEmbedding<T>> deferred) {
  const SinusoidEmbedding<T>& p = deferred.wait();
  const int half = p.width / 2;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(p.batch) * half) return;
  const std::int64_t b = index / half;
  const int k = static_cast<int>(index % half);
  const double frequency = pow(10000.0, -static_cast<double>(k) / half);
  double sine, cosine;
  sincos(p.scale * static_cast<double>(p.t[b]) * frequency, &sine, &cosine);
  p.out[b * p.width + k] = narrow<T>(static_cast<float>(sine));
  p.out[b * p.width + half + k] = narrow<T>(static_cast<float>(cosine));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    label_forward_kernel(Deferred<LabelForward<T>> deferred) {
  const LabelForward<T>& p = deferred.wait();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(p.batch) * p.width) return;
  const std::int64_t row = row_of(p.labels[index / p.width], p.classes);
  p.y[index] = narrow<T>(widen(p.x[index]) + widen(p.table[row * p.width + index % p.width]));
}

// A block is a row of the table and 64 of its columns; it goes through the batch in order. The sum
// of what the other rows have is zero, so that sixteen loads are in flight at a time.
template <class T>
__global__ void __launch_bounds__(kTableThreads)
    label_backward_kernel(Deferred<LabelBackward<T>> deferred, unsigned tiles) {
  const LabelBackward<T>& p = deferred.wait();
  const int row = static_cast<int>(blockIdx.x / tiles);
  const int column = static_cast<int>(blockIdx.x % tiles) * kTableThreads + threadIdx.x;
  if (column >= p.width) return;
  float sum = 0;
#pragma unroll 16
  for (int b = 0; b < p.batch; ++b)
    sum += row_of(p.labels[b], p.classes) == row
               ? widen(p.dy[static_cast<std::int64_t>(b) * p.width + column])
               : 0.0f;
  p.dtable[static_cast<std::int64_t>(row) * p.width + column] = sum;
}

unsigned checked_grid(const char* op, std::int64_t blocks) {
  FM_CHECK(blocks <= kMaxGrid, "[", op, "] too large for one launch, got ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

}  // namespace

template <class T>
void sinusoid_embedding(CudaQueue& queue, const SinusoidEmbedding<T>& p) {
  check_shape(p);
  const std::int64_t angles = static_cast<std::int64_t>(p.batch) * (p.width / 2);
  launch(queue, "sinusoid_embedding", sinusoid_kernel<T>,
         checked_grid("sinusoid_embedding", ceil_div(angles, kThreads)), kThreads, 0, p);
}

template <class T>
void label_forward(CudaQueue& queue, const LabelForward<T>& p) {
  check_label_shape(p.batch, p.width, p.classes);
  const std::int64_t elements = static_cast<std::int64_t>(p.batch) * p.width;
  launch(queue, "label_forward", label_forward_kernel<T>,
         checked_grid("label_embedding", ceil_div(elements, kThreads)), kThreads, 0, p);
}

template <class T>
void label_backward(CudaQueue& queue, const LabelBackward<T>& p) {
  check_label_shape(p.batch, p.width, p.classes);
  const int tiles = ceil_div(p.width, kTableThreads);
  const std::int64_t blocks = (static_cast<std::int64_t>(p.classes) + 1) * tiles;
  launch(queue, "label_backward", label_backward_kernel<T>, checked_grid("label_embedding", blocks),
         kTableThreads, 0, p, static_cast<unsigned>(tiles));
}

template void sinusoid_embedding(CudaQueue&, const SinusoidEmbedding<float>&);
template void sinusoid_embedding(CudaQueue&, const SinusoidEmbedding<f16>&);
template void sinusoid_embedding(CudaQueue&, const SinusoidEmbedding<bf16>&);
template void label_forward(CudaQueue&, const LabelForward<float>&);
template void label_forward(CudaQueue&, const LabelForward<f16>&);
template void label_forward(CudaQueue&, const LabelForward<bf16>&);
template void label_backward(CudaQueue&, const LabelBackward<float>&);
template void label_backward(CudaQueue&, const LabelBackward<f16>&);
template void label_backward(CudaQueue&, const LabelBackward<bf16>&);

}  // namespace fm
