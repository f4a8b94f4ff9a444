#include <algorithm>
#include <initializer_list>

#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/causal_conv1d/causal_conv1d.h"

// Forward and backward walk the tokens in the direction's own order: a thread owns N neighbouring
// channels and a run of tokens, and keeps the width-1 inputs before the current token in registers.
// Runs are short, so that there are enough of them to fill the device; a run reads the width-1
// tokens before (and, backward, after) it again, which the caches serve. Tokens are taken kAhead at
// a time: all loads first, then the arithmetic.

namespace fm {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;
constexpr int kForwardRun = 32;  // tokens of a forward run at most

constexpr int kRows = kThreads / kWarp;  // runs of a backward block, one a warp
static_assert(kConvPieceTokens % kRows == 0, "the runs of a piece are equally long");

constexpr int kSumRows = 16;  // pieces that a second-stage block reads at a time

// Elements of a vector access. Backward keeps twice as many values a channel, so it takes half.
template <class T>
constexpr int kForwardWide = 16 / sizeof(T);
constexpr int kBackwardWide = 4;

// Channel `channel` of one image: where the first token of the direction's order lies, and how far
// the next.
template <class P>
struct Line {
  P* first;
  std::int64_t step;

  __device__ Line(P* rows, std::int64_t stride, std::int64_t image, const ConvShape& s,
                  int channel) {
    const bool mirrored = channel >= s.channels / s.directions;
    first = rows + (image * s.length + (mirrored ? s.length - 1 : 0)) * stride + channel;
    step = mirrored ? -stride : stride;
  }
  __device__ P* at(int t) const { return first + t * step; }
};

template <int N, class T>
__device__ __forceinline__ void load_or_zero(float (&to)[N], const Line<const T>& line, int t,
                                             bool exists) {
  if (exists) {
    load_wide(to, line.at(t));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = 0;
  }
}

// Weights and bias of N channels.
template <int W, int N>
struct Taps {
  float at[N][W], bias[N];

  __device__ __forceinline__ Taps(const float* weight, const float* biases, int channel) {
    constexpr int wide = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int j = 0; j < N * W; j += wide) {
      float part[wide];
      load_wide(part, weight + static_cast<std::int64_t>(channel) * W + j);
#pragma unroll
      for (int i = 0; i < wide; ++i) at[(j + i) / W][(j + i) % W] = part[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) bias[i] = biases[channel + i];
  }

  // s of a token; xs[oldest] holds the input width-1 tokens before it.
  __device__ __forceinline__ float pre_activation(const float (*xs)[N], int i) const {
    float s = bias[i];
#pragma unroll
    for (int k = 0; k < W; ++k) s = fmaf(at[i][k], xs[k][i], s);
    return s;
  }
};

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// Moves the last `past` rows of a window to its front.
template <int past, int N>
__device__ __forceinline__ void slide(float (&window)[past + kAhead][N]) {
#pragma unroll
  for (int k = 0; k < past; ++k)
#pragma unroll
    for (int i = 0; i < N; ++i) window[k][i] = window[k + kAhead][i];
}

// A thread a (image, run, vector of channels), vectors fastest.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(ConvForward<T> p, int runs, int run) {
  constexpr int past = W - 1;
  const ConvShape& shape = p.shape;
  const int vectors = shape.channels / N;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t image = index / vectors / runs;
  if (image >= shape.batch) return;
  const int channel = static_cast<int>(index % vectors) * N;
  const int begin = static_cast<int>(index / vectors % runs) * run;
  const int end = min(begin + run, shape.length);

  const Line<const T> x(p.x, p.x_stride, image, shape, channel);
  const Line<T> u(p.u, shape.channels, image, shape, channel);
  const Taps<W, N> taps(p.weight, p.bias, channel);
  float xs[past + kAhead][N];  // inputs of the tokens t - past to t + kAhead - 1
#pragma unroll
  for (int k = 0; k < past; ++k) load_or_zero(xs[k], x, begin - past + k, begin - past + k >= 0);
  for (int t = begin; t < end; t += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) load_or_zero(xs[past + j], x, t + j, t + j < end);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (t + j >= end) break;
      float out[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float s = taps.pre_activation(xs + j, i);
        out[i] = s * sigmoid(s);
      }
      store_narrow(u.at(t + j), out);
    }
    slide<past>(xs);
  }
}

// Gradients of the taps and the bias of N channels over a run.
template <int W, int N>
struct TapSums {
  float taps[N][W] = {}, bias[N] = {};
};

// The run [begin, end) of one image: writes its dx and adds to `sums`. The loop goes past tokens
// further than the run, since their gradients reach back into it.
template <class T, int W, int N>
__device__ __forceinline__ void backward_run(const ConvBackward<T>& p, std::int64_t image,
                                             int channel, int begin, int end, TapSums<W, N>& sums) {
  constexpr int past = W - 1;
  const ConvShape& shape = p.shape;
  const Line<const T> x(p.x, p.x_stride, image, shape, channel);
  const Line<const T> du(p.du, shape.channels, image, shape, channel);
  const Line<T> dx(p.dx, p.x_stride, image, shape, channel);
  const Taps<W, N> taps(p.weight, p.bias, channel);
  const int last = min(end + past, shape.length);
  float xs[past + kAhead][N];       // inputs of the tokens t - past to t + kAhead - 1
  float ds[past + kAhead][N] = {};  // their ds
#pragma unroll
  for (int k = 0; k < past; ++k) load_or_zero(xs[k], x, begin - past + k, begin - past + k >= 0);
  for (int t = begin; t < end + past; t += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      load_or_zero(xs[past + j], x, t + j, t + j < last);
      load_or_zero(ds[past + j], du, t + j, t + j < last);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const bool own = t + j < end;
      float dx_out[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float s = taps.pre_activation(xs + j, i), gate = sigmoid(s);
        ds[past + j][i] *= gate * fmaf(s, 1.0f - gate, 1.0f);
        const float own_ds = own ? ds[past + j][i] : 0.0f;
        sums.bias[i] += own_ds;
        dx_out[i] = 0;
#pragma unroll
        for (int k = 0; k < W; ++k) {
          sums.taps[i][k] = fmaf(own_ds, xs[j + k][i], sums.taps[i][k]);
          dx_out[i] = fmaf(taps.at[i][past - k], ds[j + k][i], dx_out[i]);
        }
      }
      const int complete = t + j - past;  // the token whose gradients have all arrived
      if (complete >= begin && complete < end) store_narrow(dx.at(complete), dx_out);
    }
    slide<past>(xs);
    slide<past>(ds);
  }
}

// A block a (piece, 32 N channels): a warp a run. The workspace is [pieces, W + 1, channels]. Two
// blocks a multiprocessor want at most 128 registers, which widths over 4 would spill.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads, W <= 4 ? 2 : 1)
    backward_kernel(ConvBackward<T> p, int pieces_per_image, int run) {
  constexpr int tile = kWarp * N;
  alignas(16) __shared__ float shared[kRows][W + 1][tile];
  const int tiles = ceil_div(p.shape.channels, tile);
  const std::int64_t piece = blockIdx.x / tiles;
  const int first_channel = static_cast<int>(blockIdx.x % tiles) * tile;
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;

  TapSums<W, N> sums;
  const int channel = first_channel + lane * N;
  if (channel < p.shape.channels) {
    const int begin = (static_cast<int>(piece % pieces_per_image) * kRows + row) * run;
    const int end = min(begin + run, p.shape.length);
    if (begin < end) backward_run(p, piece / pieces_per_image, channel, begin, end, sums);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int k = 0; k < W; ++k) shared[row][k][lane * N + i] = sums.taps[i][k];
    shared[row][W][lane * N + i] = sums.bias[i];
  }
  __syncthreads();
  float* partial = static_cast<float*>(p.workspace) + piece * (W + 1) * p.shape.channels;
  for (int index = threadIdx.x; index < (W + 1) * tile; index += kThreads) {
    const int k = index / tile, column = index % tile;
    if (first_channel + column >= p.shape.channels) continue;
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum += shared[r][k][column];
    partial[static_cast<std::int64_t>(k) * p.shape.channels + first_channel + column] = sum;
  }
}

// Second stage: a block sums 32 columns of the pieces' partial rows, always in the same order.
__global__ void __launch_bounds__(kWarp* kSumRows)
    sum_partials_kernel(const float* partials, std::int64_t pieces, int width, int channels,
                        float* dweight, float* dbias) {
  __shared__ float shared[kSumRows][kWarp];
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  const std::int64_t columns = static_cast<std::int64_t>(width + 1) * channels;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (std::int64_t piece = row; piece < pieces; piece += kSumRows)
      sum += partials[piece * columns + column];
  }
  shared[row][lane] = sum;
  __syncthreads();
  if (row > 0 || column >= columns) return;
  for (int r = 1; r < kSumRows; ++r) sum += shared[r][lane];
  const std::int64_t k = column / channels, channel = column % channels;
  if (k < width) dweight[channel * width + k] = sum;
  else dbias[channel] = sum;
}

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// Whether vectors of `wide` elements fit: none straddles two directions, all are aligned.
template <class T>
bool vectors_fit(int wide, const ConvShape& s, std::int64_t x_stride, const float* weight,
                 std::initializer_list<const T*> arrays) {
  return s.channels / s.directions % wide == 0 && x_stride % wide == 0 && aligned(weight, 16) &&
         std::all_of(arrays.begin(), arrays.end(),
                     [&](const T* array) { return aligned(array, wide * sizeof(T)); });
}

// Calls body.operator()<width>().
template <class Body>
void with_width(int width, Body&& body) {
  switch (width) {
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    case 4: return body.template operator()<4>();
    case 5: return body.template operator()<5>();
    case 6: return body.template operator()<6>();
    case 7: return body.template operator()<7>();
    case 8: return body.template operator()<8>();
  }
}
static_assert(kConvMaxWidth == 8, "with_width lists the widths");

dim3 grid_of(std::int64_t blocks) {
  FM_CHECK(blocks <= kMaxGrid, "[causal_conv1d] too large for one launch: ", blocks, " blocks");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace

template <class T>
void conv_forward(CudaQueue& queue, const ConvForward<T>& p) {
  conv_check(p.shape, p.x_stride);
  const ConvShape& s = p.shape;
  const int runs = ceil_div(s.length, kForwardRun), run = ceil_div(s.length, runs);
  const std::int64_t lines = static_cast<std::int64_t>(s.batch) * runs;
  with_width(s.width, [&]<int W>() {
    constexpr int wide = kForwardWide<T>;
    if (vectors_fit<T>(wide, s, p.x_stride, p.weight, {p.x, p.u}))
      launch(queue, "conv_forward", forward_kernel<T, W, wide>,
             grid_of(ceil_div(lines * (s.channels / wide), kThreads)), kThreads, 0, p, runs, run);
    else
      launch(queue, "conv_forward", forward_kernel<T, W, 1>,
             grid_of(ceil_div(lines * s.channels, kThreads)), kThreads, 0, p, runs, run);
  });
}

template <class T>
void conv_backward(CudaQueue& queue, const ConvBackward<T>& p) {
  conv_check(p.shape, p.x_stride);
  const ConvShape& s = p.shape;
  const std::int64_t pieces = conv_pieces(s);
  const int pieces_per_image = static_cast<int>(pieces / s.batch);
  const int run = ceil_div(s.length, pieces_per_image * kRows);
  with_width(s.width, [&]<int W>() {
    constexpr int wide = kBackwardWide;
    if (vectors_fit<T>(wide, s, p.x_stride, p.weight, {p.x, p.du, p.dx}))
      launch(queue, "conv_backward", backward_kernel<T, W, wide>,
             grid_of(pieces * ceil_div(s.channels, kWarp * wide)), kThreads, 0, p, pieces_per_image,
             run);
    else
      launch(queue, "conv_backward", backward_kernel<T, W, 1>,
             grid_of(pieces * ceil_div(s.channels, kWarp)), kThreads, 0, p, pieces_per_image, run);
  });
  const std::int64_t columns = static_cast<std::int64_t>(s.width + 1) * s.channels;
  launch(queue, "conv_backward_sums", sum_partials_kernel, grid_of(ceil_div(columns, kWarp)),
         kWarp * kSumRows, 0, static_cast<const float*>(p.workspace), pieces, s.width, s.channels,
         p.dweight, p.dbias);
}

template void conv_forward(CudaQueue&, const ConvForward<float>&);
template void conv_forward(CudaQueue&, const ConvForward<f16>&);
template void conv_forward(CudaQueue&, const ConvForward<bf16>&);
template void conv_backward(CudaQueue&, const ConvBackward<float>&);
template void conv_backward(CudaQueue&, const ConvBackward<f16>&);
template void conv_backward(CudaQueue&, const ConvBackward<bf16>&);

}  // namespace fm
