#include <algorithm>

#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/flow/flow_check.h"
#include "kernels/flow/flow_sample.h"

namespace fm {
namespace {

constexpr std::int64_t kPiece = 1024;  // elements worked on at once; a multiple of 4
constexpr std::int64_t kGrain = 4096;
constexpr int kLanes = 16;  // running sums: as many on every processor, so the bits are the same

FM_SIMD void pixel_row(const std::uint8_t* pixels, std::int64_t count, float* x1) {
  for (std::int64_t i = 0; i < count; ++i) x1[i] = flow_pixel(pixels[i], 0.0f);
}
void pixel_row(const std::uint8_t* pixels, std::int64_t count, double* x1) {
  for (std::int64_t i = 0; i < count; ++i) x1[i] = flow_pixel(pixels[i], 0.0);
}

FM_SIMD void path_row(const float* x0, const float* x1, float t, std::int64_t count, float* x_t,
                      float* target) {
  for (std::int64_t i = 0; i < count; ++i) {
    const FlowPoint<float> at = flow_point(x0[i], x1[i], t);
    x_t[i] = at.x_t;
    target[i] = at.target;
  }
}
void path_row(const double* x0, const double* x1, double t, std::int64_t count, double* x_t,
              double* target) {
  for (std::int64_t i = 0; i < count; ++i) {
    const FlowPoint<double> at = flow_point(x0[i], x1[i], t);
    x_t[i] = at.x_t;
    target[i] = at.target;
  }
}

// The difference is rounded to float, its square is exact in double.
FM_SIMD double squared_distance(const float* a, const float* b, std::int64_t count) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const double d = a[i + j] - b[i + j];
      lanes[j] += d * d;
    }
  double sum = 0;
  for (; i < count; ++i) {
    const double d = a[i] - b[i];
    sum += d * d;
  }
  for (double lane : lanes) sum += lane;
  return sum;
}
double squared_distance(const double* a, const double* b, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

}  // namespace

std::size_t flow_loss_workspace(std::int64_t) {
  return kLossPartials * sizeof(double);
}

template <class R>
void flow_batch(CpuQueue& queue, const FlowBatch<R>& p) {
  check_flow_batch(p);
  const std::uint64_t step = p.state->step;
  parallel_for(queue, p.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    float draws[kPiece];
    R x0[kPiece], x1[kPiece];
    for (int b = static_cast<int>(begin); b < end; ++b) {
      const std::int64_t image = flow_image(p.images, p.batch, p.seed, step, b);
      p.t[b] = flow_time(p.time_sampling, p.seed, step, b);
      if (p.labels)
        p.batch_labels[b] = flow_label(p.labels[image], p.classes, p.label_drop, p.seed, step, b);
      const RandomKey key = flow_key(p.seed, stream::noise, step, b);
      for (std::int64_t first = 0; first < p.pixels; first += kPiece) {
        const std::int64_t count = std::min(kPiece, p.pixels - first), at = b * p.pixels + first;
        fill_normals(key, first, count, draws);
        std::copy_n(draws, count, x0);
        pixel_row(p.data + image * p.pixels + first, count, x1);
        path_row(x0, x1, p.t[b], count, p.x_t + at, p.target + at);
      }
    }
  });
}

template <class R>
void flow_interpolate(CpuQueue& queue, const FlowInterpolate<R>& p) {
  check_flow_shape(p.batch, p.pixels);
  parallel_for(queue, p.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t at = b * p.pixels;
      path_row(p.x0 + at, p.x1 + at, p.t[b], p.pixels, p.x_t + at, p.target + at);
    }
  });
}

template <class R>
void flow_loss_forward(CpuQueue& queue, const FlowLossForward<R>& p) {
  check_flow_count(p.count);
  auto* partials = static_cast<double*>(p.workspace);
  const std::int64_t piece = std::max(kGrain, (p.count + kLossPartials - 1) / kLossPartials);
  const std::int64_t pieces = (p.count + piece - 1) / piece;
  parallel_for(queue, p.count, piece, [&](std::int64_t begin, std::int64_t end) {
    partials[begin / piece] = squared_distance(p.v + begin, p.target + begin, end - begin);
  });
  double sum = 0;
  for (std::int64_t i = 0; i < pieces; ++i) sum += partials[i];
  *p.loss = static_cast<R>(sum / static_cast<double>(p.count));
}

template <class R>
void flow_loss_backward(CpuQueue& queue, const FlowLossBackward<R>& p) {
  check_flow_count(p.count);
  const R scale = p.state ? p.state->loss_scale : 1;
  const R factor = static_cast<R>(2.0 / static_cast<double>(p.count)) * scale;
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) p.dv[i] = factor * (p.v[i] - p.target[i]);
  });
}

template void flow_batch(CpuQueue&, const FlowBatch<float>&);
template void flow_batch(CpuQueue&, const FlowBatch<double>&);
template void flow_interpolate(CpuQueue&, const FlowInterpolate<float>&);
template void flow_interpolate(CpuQueue&, const FlowInterpolate<double>&);
template void flow_loss_forward(CpuQueue&, const FlowLossForward<float>&);
template void flow_loss_forward(CpuQueue&, const FlowLossForward<double>&);
template void flow_loss_backward(CpuQueue&, const FlowLossBackward<float>&);
template void flow_loss_backward(CpuQueue&, const FlowLossBackward<double>&);

}  // namespace fm
