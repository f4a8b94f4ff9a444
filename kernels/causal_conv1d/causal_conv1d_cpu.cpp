#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/fast_math.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/causal_conv1d/causal_conv1d.h"

namespace fm {
namespace {

constexpr int kTile = 64;          // channels of a tile: its rows and sums stay in the L1 cache
constexpr int kColumnGrain = 256;  // columns of the workspace summed by one call

// Up to kTile channels of one image, all of one direction.
struct Tile {
  std::int64_t image;
  int length;
  int channel, channels;
  bool mirrored;

  // The row of token t of the direction's order.
  std::int64_t row(int t) const { return image * length + (mirrored ? length - 1 - t : t); }
};

int tiles_per_direction(const ConvShape& s) {
  return (s.channels / s.directions + kTile - 1) / kTile;
}
std::int64_t tile_count(const ConvShape& s) {
  return static_cast<std::int64_t>(s.batch) * s.directions * tiles_per_direction(s);
}

Tile tile_at(const ConvShape& s, std::int64_t index) {
  const int per_direction = s.channels / s.directions, tiles = tiles_per_direction(s);
  const int first = static_cast<int>(index % tiles) * kTile;
  const int direction = static_cast<int>(index / tiles % s.directions);
  return {index / tiles / s.directions, s.length, direction * per_direction + first,
          std::min(kTile, per_direction - first), direction == 1};
}

// The tile's weights, a row of channels a tap.
template <class T>
struct Taps {
  T at[kConvMaxWidth][kTile];

  Taps(const T* weight, int width, const Tile& tile) {
    for (int c = 0; c < tile.channels; ++c)
      for (int k = 0; k < width; ++k) at[k][c] = weight[(tile.channel + c) * width + k];
  }
};

// s_t of the tile's channels; Params is ConvForward<T> or ConvBackward<T>.
template <class Params, class T>
inline void convolve(const Params& p, const Tile& tile, const Taps<T>& taps, int t, T* s) {
  for (int c = 0; c < tile.channels; ++c) s[c] = p.bias[tile.channel + c];
  const int past = p.shape.width - 1;
  for (int k = std::max(0, past - t); k <= past; ++k) {
    const T* x = p.x + tile.row(t - past + k) * p.x_stride + tile.channel;
    const T* tap = taps.at[k];
#pragma omp simd
    for (int c = 0; c < tile.channels; ++c) s[c] += tap[c] * x[c];
  }
}

template <class T>
inline void forward_tile(const ConvForward<T>& p, const Tile& tile) {
  const Taps<T> taps(p.weight, p.shape.width, tile);
  T s[kTile];
  for (int t = 0; t < p.shape.length; ++t) {
    convolve(p, tile, taps, t, s);
    T* u = p.u + tile.row(t) * p.shape.channels + tile.channel;
#pragma omp simd
    for (int c = 0; c < tile.channels; ++c) u[c] = s[c] * fast_sigmoid(s[c]);
  }
}

// Writes dx and the image's share of the weight gradients, `partial` [width + 1, channels].
template <class T>
inline void backward_tile(const ConvBackward<T>& p, const Tile& tile, T* partial) {
  const int past = p.shape.width - 1;
  const Taps<T> taps(p.weight, p.shape.width, tile);
  T ds[kTile], dtaps[kConvMaxWidth][kTile] = {}, dbias[kTile] = {};
  for (int t = 0; t < p.shape.length; ++t) {
    convolve(p, tile, taps, t, ds);
    const T* du = p.du + tile.row(t) * p.shape.channels + tile.channel;
#pragma omp simd
    for (int c = 0; c < tile.channels; ++c) {
      const T s = ds[c], gate = fast_sigmoid(s);
      ds[c] = du[c] * gate * (1 + s * (1 - gate));
      dbias[c] += ds[c];
    }
    T* dx_t = p.dx + tile.row(t) * p.x_stride + tile.channel;
    for (int c = 0; c < tile.channels; ++c) dx_t[c] = 0;
    for (int k = std::max(0, past - t); k <= past; ++k) {
      const std::int64_t at = tile.row(t - past + k) * p.x_stride + tile.channel;
      const T* x = p.x + at;
      T* dx = p.dx + at;
      const T* tap = taps.at[k];
      T* dtap = dtaps[k];
#pragma omp simd
      for (int c = 0; c < tile.channels; ++c) {
        dtap[c] += ds[c] * x[c];
        dx[c] += ds[c] * tap[c];
      }
    }
  }
  for (int k = 0; k <= p.shape.width; ++k)
    for (int c = 0; c < tile.channels; ++c)
      partial[k * p.shape.channels + tile.channel + c] = k < p.shape.width ? dtaps[k][c] : dbias[c];
}

FM_SIMD void forward_tile_simd(const ConvForward<float>& p, const Tile& tile) {
  forward_tile(p, tile);
}
FM_SIMD void backward_tile_simd(const ConvBackward<float>& p, const Tile& tile, float* partial) {
  backward_tile(p, tile, partial);
}

// Second stage: sums columns [begin, end) of the images' partial rows.
template <class T>
void sum_partials(const ConvBackward<T>& p, const T* partials, std::int64_t begin,
                  std::int64_t end) {
  const std::int64_t width = p.shape.width, channels = p.shape.channels;
  const std::int64_t columns = (width + 1) * channels;
  T sums[kColumnGrain] = {};
  for (std::int64_t image = 0; image < p.shape.batch; ++image)
    for (std::int64_t i = begin; i < end; ++i) sums[i - begin] += partials[image * columns + i];
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t k = i / channels, c = i % channels;
    (k < width ? p.dweight[c * width + k] : p.dbias[c]) = sums[i - begin];
  }
}

}  // namespace

void conv_check(const ConvShape& s, std::int64_t x_stride) {
  FM_CHECK(s.batch > 0 && s.length > 0 && s.channels > 0,
           "[causal_conv1d] batch, length and channels must be positive, got ", s.batch, ", ",
           s.length, ", ", s.channels);
  FM_CHECK(s.directions == 1 || s.directions == 2,
           "[causal_conv1d] directions must be 1 or 2, got ", s.directions);
  FM_CHECK(s.channels % s.directions == 0,
           "[causal_conv1d] channels must be a multiple of directions (", s.directions, "), got ",
           s.channels);
  FM_CHECK(s.width >= 2 && s.width <= kConvMaxWidth, "[causal_conv1d] width must be 2 to ",
           kConvMaxWidth, ", got ", s.width);
  FM_CHECK(x_stride >= s.channels, "[causal_conv1d] x_stride must be at least channels (",
           s.channels, "), got ", x_stride);
}

template <class T>
std::size_t conv_backward_workspace(const ConvShape& s) {
  return static_cast<std::size_t>(conv_pieces(s)) * (s.width + 1) * s.channels * sizeof(acc_t<T>);
}

template <class T>
void conv_forward(CpuQueue& queue, const ConvForward<T>& p) {
  conv_check(p.shape, p.x_stride);
  parallel_for(queue, tile_count(p.shape), 1, [&](std::int64_t index, std::int64_t) {
    const Tile tile = tile_at(p.shape, index);
    if constexpr (std::is_same_v<T, float>) forward_tile_simd(p, tile);
    else forward_tile(p, tile);
  });
}

template <class T>
void conv_backward(CpuQueue& queue, const ConvBackward<T>& p) {
  conv_check(p.shape, p.x_stride);
  T* partials = static_cast<T*>(p.workspace);
  const std::int64_t columns = static_cast<std::int64_t>(p.shape.width + 1) * p.shape.channels;
  parallel_for(queue, tile_count(p.shape), 1, [&](std::int64_t index, std::int64_t) {
    const Tile tile = tile_at(p.shape, index);
    T* partial = partials + tile.image * columns;
    if constexpr (std::is_same_v<T, float>) backward_tile_simd(p, tile, partial);
    else backward_tile(p, tile, partial);
  });
  parallel_for(queue, columns, kColumnGrain, [&](std::int64_t begin, std::int64_t end) {
    sum_partials(p, partials, begin, end);
  });
}

template std::size_t conv_backward_workspace<double>(const ConvShape&);
template std::size_t conv_backward_workspace<float>(const ConvShape&);
template std::size_t conv_backward_workspace<f16>(const ConvShape&);
template std::size_t conv_backward_workspace<bf16>(const ConvShape&);
template void conv_forward(CpuQueue&, const ConvForward<float>&);
template void conv_forward(CpuQueue&, const ConvForward<double>&);
template void conv_backward(CpuQueue&, const ConvBackward<float>&);
template void conv_backward(CpuQueue&, const ConvBackward<double>&);

}  // namespace fm
