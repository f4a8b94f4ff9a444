#include <algorithm>
#include <cmath>

#include "kernels/base/parallel_for.h"
#include "kernels/embedding/embedding.h"

namespace fm {
namespace {

constexpr std::int64_t kRowGrain = 16;

int row_of(std::int32_t label, int classes) {
  return label >= 0 && label < classes ? label : classes;
}

}  // namespace

template <class T>
void sinusoid_embedding(CpuQueue& queue, const SinusoidEmbedding<T>& p) {
  check_shape(p);
  const int half = p.width / 2;
  parallel_for(queue, p.batch, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (int k = 0; k < half; ++k) {
      const double frequency = std::pow(10000.0, -static_cast<double>(k) / half);
      for (std::int64_t b = begin; b < end; ++b) {
        const double angle = p.scale * static_cast<double>(p.t[b]) * frequency;
        p.out[b * p.width + k] = static_cast<T>(std::sin(angle));
        p.out[b * p.width + half + k] = static_cast<T>(std::cos(angle));
      }
    }
  });
}

template <class T>
void label_forward(CpuQueue& queue, const LabelForward<T>& p) {
  check_label_shape(p.batch, p.width, p.classes);
  parallel_for(queue, p.batch, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const T* table =
          p.table + static_cast<std::int64_t>(row_of(p.labels[b], p.classes)) * p.width;
      for (int c = 0; c < p.width; ++c) p.y[b * p.width + c] = p.x[b * p.width + c] + table[c];
    }
  });
}

template <class T>
void label_backward(CpuQueue& queue, const LabelBackward<T>& p) {
  check_label_shape(p.batch, p.width, p.classes);
  parallel_for(queue, p.classes + 1, 1, [&](std::int64_t row, std::int64_t) {
    acc_t<T>* dtable = p.dtable + row * p.width;
    std::fill_n(dtable, p.width, acc_t<T>(0));
    for (std::int64_t b = 0; b < p.batch; ++b) {
      if (row_of(p.labels[b], p.classes) != row) continue;
      for (int c = 0; c < p.width; ++c) dtable[c] += p.dy[b * p.width + c];
    }
  });
}

template void sinusoid_embedding(CpuQueue&, const SinusoidEmbedding<float>&);
template void sinusoid_embedding(CpuQueue&, const SinusoidEmbedding<double>&);
template void label_forward(CpuQueue&, const LabelForward<float>&);
template void label_forward(CpuQueue&, const LabelForward<double>&);
template void label_backward(CpuQueue&, const LabelBackward<float>&);
template void label_backward(CpuQueue&, const LabelBackward<double>&);

}  // namespace fm
