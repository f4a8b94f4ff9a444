#include <algorithm>
#include <initializer_list>

#include "kernels/base/approx.cuh"
#include "kernels/base/check.h"
#include "kernels/base/column_sums.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/causal_conv1d/causal_conv1d_turns.cuh"

// Forward and backward walk the tokens in the direction's own order: a thread owns N neighbouring
// channels and a run of tokens, and keeps the inputs of the last W tokens in a ring of registers.
// A run reads the W-1 tokens before (and, backward, after) it again, so runs are as long as still
// fills the device. A turn of the ring is W tokens: the next turns' loads are under way while this
// one's arithmetic runs.

namespace fm {
namespace {

using namespace causal_conv1d;

constexpr int kLeastRun = 8;                            // tokens
constexpr int kForwardBlocks = 3, kBackwardBlocks = 2;  // on a multiprocessor, up to width 4

constexpr int kWarps = kThreads / kWarp;  // of a backward block: as many runs of as many channels
static_assert(kConvPieceTokens % kWarps == 0, "the runs of a piece are equally long");

constexpr int kWide = 4;  // channels of a thread where the alignment allows it

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

  // s of channel i for the token in slot `now` of the ring; the slot after it is the oldest.
  __device__ __forceinline__ float pre_activation(const float (&ring)[W][N], int now, int i) const {
    float s = bias[i];
#pragma unroll
    for (int k = 0; k < W; ++k) s = fmaf(at[i][k], ring[(now + 1 + k) % W][i], s);
    return s;
  }
};

// A thread a (image, run, vector of channels), vectors fastest.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads, W <= 4 ? kForwardBlocks : 1)
    forward_kernel(Deferred<ConvForward<T>> deferred, int runs, int run) {
  const ConvForward<T>& p = deferred.wait();
  extern __shared__ __align__(16) unsigned char shared[];
  const ConvShape& shape = p.shape;
  const int vectors = shape.channels / N;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t image = index / vectors / runs;
  if (image >= shape.batch) return;
  const int channel = static_cast<int>(index % vectors) * N;
  const int begin = static_cast<int>(index / vectors % runs) * run;
  const int end = min(begin + run, shape.length);
  if (begin >= end) return;  // the runs before this one took all tokens

  const Line<const T> x(p.x, p.x_stride, image, shape, channel);
  const Line<T> u(p.u, shape.channels, image, shape, channel);
  Turn<T, W, N> turn;
  turn.template load<false>(x, begin - W, begin);
  Ahead<T, W, N, 1> ahead(shared);
#pragma unroll
  for (int i = 0; i < ahead.kTurns; ++i) ahead.start(x, i, begin + i * W, end);
  const Taps<W, N> taps(p.weight, p.bias, channel);
  float ring[W][N];
#pragma unroll
  for (int j = 1; j < W; ++j) widen_all(ring[j], turn.at[j]);
  T* to = u.at(begin);
  for (int t = begin; t < end; t += W) {
    turn = ahead.template take<false>(x, t, end);
#pragma unroll
    for (int j = 0; j < W; ++j, to += u.step) {
      if (t + j >= end) break;
      widen_all(ring[j], turn.at[j]);
      float out[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float s = taps.pre_activation(ring, j, i);
        out[i] = s * sigmoid_approx(s);
      }
      store_narrow(to, out);
    }
  }
}

// Gradients of the taps and the bias of N channels over a run.
template <int W, int N>
struct TapSums {
  float taps[N][W] = {}, bias[N] = {};
};

// The run [begin, end) of one image: writes its dx and adds to the sums. The loop goes W-1 tokens
// further than the run, since their gradients reach back into it.
template <class T, int W, int N>
struct BackwardRun {
  static constexpr int past = W - 1;
  const Line<const T> x, du;
  const Line<T> dx;
  const int begin, end, last;
  const Taps<W, N> taps;
  TapSums<W, N>& sums;
  Ahead<T, W, N, 2> ahead_x, ahead_du;
  float xs[W][N], ds[W][N];

  __device__ __forceinline__ BackwardRun(const ConvBackward<T>& p, std::int64_t image, int channel,
                                         int first, int after, TapSums<W, N>& to,
                                         unsigned char* shared)
      : x(p.x, p.x_stride, image, p.shape, channel),
        du(p.du, p.shape.channels, image, p.shape, channel),
        dx(p.dx, p.x_stride, image, p.shape, channel),
        begin(first),
        end(after),
        last(min(after + past, p.shape.length)),
        taps(p.weight, p.bias, channel),
        sums(to),
        ahead_x(shared),
        ahead_du(shared + Ahead<T, W, N, 2>::kBytes),
        ds{} {
    Turn<T, W, N> before;
    before.template load<false>(x, begin - W, begin);
#pragma unroll
    for (int i = 0; i < ahead_x.kTurns; ++i) {
      ahead_x.start(x, i, begin + i * W, last);
      ahead_du.start(du, i, begin + i * W, last);
    }
#pragma unroll
    for (int j = 1; j < W; ++j) widen_all(xs[j], before.at[j]);
    for (int t = begin; t < end + past; t += W) {
      if (t >= begin + W && t + (ahead_x.kTurns + 1) * W <= end) turn<true>(t);
      else turn<false>(t);
    }
  }

  // Tokens t to t + W - 1. kInside: they and those that are started now are the run's, and so are
  // the W before.
  template <bool kInside>
  __device__ __forceinline__ void turn(int t) {
    const Turn<T, W, N> turn_x = ahead_x.template take<kInside>(x, t, last);
    const Turn<T, W, N> turn_du = ahead_du.template take<kInside>(du, t, last);
    T* to = dx.at(t - past);  // of the token whose gradients arrive last with token t
#pragma unroll
    for (int j = 0; j < W; ++j, to += dx.step) {
      const bool own = kInside || t + j < end;
      widen_all(xs[j], turn_x.at[j]);
      widen_all(ds[j], turn_du.at[j]);
      float out[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float s = taps.pre_activation(xs, j, i), gate = sigmoid_approx(s);
        ds[j][i] *= gate * fmaf(s, 1.0f - gate, 1.0f);
        const float own_ds = own ? ds[j][i] : 0.0f;
        sums.bias[i] += own_ds;
        out[i] = 0;
#pragma unroll
        for (int k = 0; k < W; ++k) {
          const int slot = (j + 1 + k) % W;  // of the token W-1-k before this one
          sums.taps[i][k] = fmaf(own_ds, xs[slot][i], sums.taps[i][k]);
          out[i] = fmaf(taps.at[i][past - k], ds[slot][i], out[i]);
        }
      }
      const int complete = t + j - past;
      if (kInside || (complete >= begin && complete < end)) store_narrow(to, out);
    }
  }
};

// How a backward block's warps share a piece of an image: `rows` runs, each of 32 N channels.
struct BackwardTile {
  int rows, run;
  int channel_tiles;  // of the block's kWarps / rows times 32 N channels
};

// Both arrays' turns, and afterwards the block's sums in their place.
template <class T, int W, int N>
constexpr std::size_t kBackwardBytes = std::max(2 * Ahead<T, W, N, 2>::kBytes,
                                                (W + 1) * kThreads * N * sizeof(float));

// The workspace is [pieces, W + 1, channels]. Two blocks a multiprocessor want at most 128
// registers, which widths over 4 would spill.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads, W <= 4 ? kBackwardBlocks : 1)
    backward_kernel(Deferred<ConvBackward<T>> deferred, int pieces_per_image, BackwardTile tile) {
  const ConvBackward<T>& p = deferred.wait();
  constexpr int warp_channels = kWarp * N;
  extern __shared__ __align__(16) unsigned char memory[];
  const std::int64_t piece = blockIdx.x / tile.channel_tiles;
  const int block_channels = kWarps / tile.rows * warp_channels;
  const int first_channel = static_cast<int>(blockIdx.x % tile.channel_tiles) * block_channels;
  const int warp = threadIdx.x / kWarp, row = warp % tile.rows;
  const int column = warp / tile.rows * warp_channels + static_cast<int>(threadIdx.x) % kWarp * N;

  TapSums<W, N> sums;
  const int channel = first_channel + column;
  if (channel < p.shape.channels) {
    const int begin = (static_cast<int>(piece % pieces_per_image) * tile.rows + row) * tile.run;
    const int end = min(begin + tile.run, p.shape.length);
    if (begin < end)
      BackwardRun<T, W, N>(p, piece / pieces_per_image, channel, begin, end, sums, memory);
  }
  wait_copies<0>();  // zeros behind the last tokens, too
  __syncthreads();
  float(*const shared)[kWarps * warp_channels] =
      reinterpret_cast<float(*)[kWarps * warp_channels]>(memory);
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int k = 0; k < W; ++k) shared[k][row * block_channels + column + i] = sums.taps[i][k];
    shared[W][row * block_channels + column + i] = sums.bias[i];
  }
  __syncthreads();
  float* partial = static_cast<float*>(p.workspace) + piece * (W + 1) * p.shape.channels;
  for (int c = threadIdx.x; c < block_channels; c += kThreads) {
    if (first_channel + c >= p.shape.channels) break;
#pragma unroll
    for (int k = 0; k <= W; ++k) {
      float sum = shared[k][c];
      for (int r = 1; r < tile.rows; ++r) sum += shared[k][r * block_channels + c];
      partial[static_cast<std::int64_t>(k) * p.shape.channels + first_channel + c] = sum;
    }
  }
}

// Where the sum of column [tap or bias][channel] of the workspace goes.
struct StoreTaps {
  int width, channels;
  float *dweight, *dbias;

  __device__ void operator()(std::int64_t column, float sum) const {
    const int k = static_cast<int>(column / channels);
    const std::int64_t channel = column % channels;
    if (k < width) dweight[channel * width + k] = sum;
    else dbias[channel] = sum;
  }
};

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// Whether vectors of kWide elements fit: none straddles two directions, all are aligned.
template <class T>
bool vectors_fit(const ConvShape& s, std::int64_t x_stride, const float* weight,
                 std::initializer_list<const T*> arrays) {
  return s.channels / s.directions % kWide == 0 && x_stride % kWide == 0 && aligned(weight, 16) &&
         std::all_of(arrays.begin(), arrays.end(),
                     [&](const T* array) { return aligned(array, kWide * sizeof(T)); });
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

// Runs that `tokens` are cut into where `lines` threads or warps would have one each and `slots` of
// them are there to be filled.
int runs_of(int tokens, std::int64_t lines, std::int64_t slots) {
  return static_cast<int>(std::clamp<std::int64_t>(slots / lines, 1, ceil_div(tokens, kLeastRun)));
}

}  // namespace

template <class T>
void conv_forward(CudaQueue& queue, const ConvForward<T>& p) {
  conv_check(p.shape, p.x_stride);
  const ConvShape& s = p.shape;
  const std::int64_t slots = std::int64_t{kThreads} * kForwardBlocks * queue.limits.multiprocessors;
  with_width(s.width, [&]<int W>() {
    const auto run = [&]<int N>() {
      const std::int64_t lines = static_cast<std::int64_t>(s.batch) * (s.channels / N);
      const int runs = runs_of(s.length, lines, slots);
      launch(queue, "conv_forward", forward_kernel<T, W, N>,
             grid_of(ceil_div(lines * runs, kThreads)), kThreads, Ahead<T, W, N, 1>::kBytes, p,
             runs, ceil_div(s.length, runs));
    };
    if (vectors_fit<T>(s, p.x_stride, p.weight, {p.x, p.u})) run.template operator()<kWide>();
    else run.template operator()<1>();
  });
}

template <class T>
void conv_backward(CudaQueue& queue, const ConvBackward<T>& p) {
  conv_check(p.shape, p.x_stride);
  const ConvShape& s = p.shape;
  const std::int64_t pieces = conv_pieces(s);
  const int pieces_per_image = static_cast<int>(pieces / s.batch);
  const int piece_tokens = ceil_div(s.length, pieces_per_image);
  const std::int64_t slots = std::int64_t{kWarps} * kBackwardBlocks * queue.limits.multiprocessors;
  with_width(s.width, [&]<int W>() {
    const auto run = [&]<int N>() {
      const int warps = ceil_div(s.channels, kWarp * N);
      const int fill = runs_of(piece_tokens, pieces * warps, slots);
      int rows = 1;  // a power of two, so that it divides the block's warps
      while (rows < kWarps && (rows * 2 <= fill || kWarps / rows > warps)) rows *= 2;
      const BackwardTile tile{.rows = rows,
                              .run = ceil_div(piece_tokens, rows),
                              .channel_tiles = ceil_div(warps, kWarps / rows)};
      launch(queue, "conv_backward", backward_kernel<T, W, N>, grid_of(pieces * tile.channel_tiles),
             kThreads, kBackwardBytes<T, W, N>, p, pieces_per_image, tile);
    };
    if (vectors_fit<T>(s, p.x_stride, p.weight, {p.x, p.du, p.dx}))
      run.template operator()<kWide>();
    else run.template operator()<1>();
  });
  column_sums(queue, "conv_backward_sums", static_cast<const float*>(p.workspace), pieces,
              static_cast<std::int64_t>(s.width + 1) * s.channels,
              StoreTaps{s.width, s.channels, p.dweight, p.dbias});
}

template void conv_forward(CudaQueue&, const ConvForward<float>&);
template void conv_forward(CudaQueue&, const ConvForward<f16>&);
template void conv_forward(CudaQueue&, const ConvForward<bf16>&);
template void conv_backward(CudaQueue&, const ConvBackward<float>&);
template void conv_backward(CudaQueue&, const ConvBackward<f16>&);
template void conv_backward(CudaQueue&, const ConvBackward<bf16>&);

}  // namespace fm
