#include <cmath>
#include <limits>

#include "kernels/base/parallel_for.h"
#include "kernels/cross_entropy/cross_entropy_check.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 64;  // rows a thread takes at a time

// The row's largest logit and the sum of exp(logit - largest), which cannot overflow.
template <class R>
struct Softmax {
  R largest, sum;
  Softmax(const R* row, int classes) : largest(row[0]), sum(0) {
    for (int j = 1; j < classes; ++j) largest = std::max(largest, row[j]);
    for (int j = 0; j < classes; ++j) sum += std::exp(row[j] - largest);
  }
};

}  // namespace

std::size_t cross_entropy_workspace(std::int64_t) {
  return kCrossEntropyPartials * sizeof(double);
}

template <class R>
void cross_entropy_forward(CpuQueue& queue, const CrossEntropyForward<R>& p) {
  check_cross_entropy(p.rows, p.classes);
  auto* partials = static_cast<double*>(p.workspace);
  const std::int64_t piece =
      std::max(kGrain, (p.rows + kCrossEntropyPartials - 1) / kCrossEntropyPartials);
  parallel_for(queue, p.rows, piece, [&](std::int64_t begin, std::int64_t end) {
    double sum = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const R* row = p.logits + i * p.classes;
      const std::int32_t label = p.labels[i];
      const Softmax<R> softmax(row, p.classes);
      const R right =
          label >= 0 && label < p.classes ? row[label] : std::numeric_limits<R>::quiet_NaN();
      sum += std::log(softmax.sum) + softmax.largest - right;
    }
    partials[begin / piece] = sum;
  });
  double sum = 0;
  for (std::int64_t i = 0; i < (p.rows + piece - 1) / piece; ++i) sum += partials[i];
  *p.loss = static_cast<R>(sum / static_cast<double>(p.rows));
}

template <class R>
void cross_entropy_backward(CpuQueue& queue, const CrossEntropyBackward<R>& p) {
  check_cross_entropy(p.rows, p.classes);
  const R scale = p.state ? p.state->loss_scale : 1;
  const R factor = static_cast<R>(1.0 / static_cast<double>(p.rows)) * scale;
  parallel_for(queue, p.rows, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const R* row = p.logits + i * p.classes;
      R* to = p.dlogits + i * p.classes;
      const std::int32_t label = p.labels[i];
      const Softmax<R> softmax(row, p.classes);
      const R weight =
          label >= 0 && label < p.classes ? factor : std::numeric_limits<R>::quiet_NaN();
      for (int j = 0; j < p.classes; ++j)
        to[j] = weight * (std::exp(row[j] - softmax.largest) / softmax.sum - (j == label));
    }
  });
}

template void cross_entropy_forward(CpuQueue&, const CrossEntropyForward<float>&);
template void cross_entropy_forward(CpuQueue&, const CrossEntropyForward<double>&);
template void cross_entropy_backward(CpuQueue&, const CrossEntropyBackward<float>&);
template void cross_entropy_backward(CpuQueue&, const CrossEntropyBackward<double>&);

}  // namespace fm
