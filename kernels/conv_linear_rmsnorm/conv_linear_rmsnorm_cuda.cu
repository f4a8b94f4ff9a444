#include "kernels/base/approx.cuh"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm_forward.cuh"

// Bound by memory: at the paper's shape 158 MB, where the two operations move 209. A stage is
// linear_rmsnorm's with the three rows more that the convolution's first outputs look back to; it
// becomes u in place, and u leaves for memory as the product reads it.

namespace fm {
namespace {

using namespace linear_rmsnorm;

constexpr int kTaps = 4;
constexpr int kStageRows = kTileRows + kTaps - 1;
constexpr int kStages = 4;
constexpr int kOutputs = 4;                    // tokens of a lane
constexpr int kWindow = kOutputs + kTaps - 1;  // and what they look at
template <class T>
constexpr int kStageElements = kStageRows* kPanel;
template <class T>
constexpr int kWarpElements = kStages* kStageElements<T>;

// The group's taps and biases, [kTaps + 1][in].
__device__ __forceinline__ void fetch_taps(float* to, const float* weight, const float* bias,
                                           int group, int in) {
  for (int c = threadIdx.x; c < in; c += blockDim.x) {
    const std::int64_t channel = std::int64_t{group} * in + c;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) to[k * in + c] = weight[channel * kTaps + k];
    to[kTaps * in + c] = bias[channel];
  }
}

// A warp's tiles of x, 64 columns a stage. A stage's first row is, where tokens go forward, the
// third before the tile's first; else the tile's first.
template <class T>
class ConvStages {
 public:
  __device__ ConvStages(T* own, const ConvForward<T>& conv, std::int64_t rows, int group, int in,
                        const Tiles& tiles)
      : own_(own),
        x_(conv.x + std::int64_t{group} * in),
        rows_(static_cast<int>(rows)),
        before_(group == 0 ? kTaps - 1 : 0),
        in_(in),
        stride_(conv.x_stride),
        tile_(tiles.first),
        tiles_(tiles) {}

  __device__ __forceinline__ T* oldest() const { return own_ + stage_ * kStageElements<T>; }
  __device__ __forceinline__ void refill() {
    const int lane = threadIdx.x % kWarp;
    if (tile_ < tiles_.count) {
      const int first = tile_ * kTileRows - before_ + lane / 8;
      const T* from = x_ + first * stride_ + column_ + lane % 8 * kOctet;
#pragma unroll
      for (int i = 0; i < kStageRows; i += 4) {
        const int row = first + i;
        if (i + lane / 8 >= kStageRows) break;
        const bool exists = row >= 0 && row < rows_;
        copy_async(panel_chunk(oldest(), i + lane / 8, lane % 8), exists ? from + i * stride_ : x_,
                   exists);
      }
      column_ += kPanel;
      if (column_ == in_) {
        column_ = 0;
        tile_ += tiles_.step;
      }
    }
    commit_copies();
    stage_ = (stage_ + 1) % kStages;
  }

 private:
  T* own_;
  const T* x_;
  int rows_, before_, in_;
  std::int64_t stride_;
  int tile_, stage_ = 0, column_ = 0;
  const Tiles& tiles_;
};

// A lane's four tokens of a stage and the three before them, in the direction's own order: place 0
// is the first one looked at, output i stands at place i + 3.
struct LaneWindow {
  int first, step;  // row of place 0 in the stage
  int begins;       // the place where an image begins, if one does after place 0; else 0 or > 6

  __device__ LaneWindow(int tile, bool mirrored, int length) {
    const int row = threadIdx.x % kWarp / 8 * kOutputs, token = tile * kTileRows + row;
    first = mirrored ? row + kWindow - 1 : row;
    step = mirrored ? -1 : 1;
    // The place of place 0 in its image.
    const int place = mirrored ? length - 1 - (token + kWindow - 1) % length
                               : (token + length - (kTaps - 1)) % length;
    begins = place == 0 ? 0 : length - place;
  }
  __device__ __forceinline__ bool whole() const { return begins == 0 || begins >= kWindow; }
  __device__ __forceinline__ int row(int place) const { return first + step * place; }
};

// u of four channels and the lane's tokens. kWhole: no image begins among them.
template <bool kWhole, class T>
__device__ __forceinline__ void convolve(unsigned (&u)[kOutputs][2], T* stage, int chunk, int half,
                                         const LaneWindow& window, const float* taps, int in) {
  float tap[kTaps][4], s[kOutputs][4];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) load_wide(tap[k], taps + k * in);
  load_wide(s[0], taps + kTaps * in);
#pragma unroll
  for (int i = 1; i < kOutputs; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) s[i][c] = s[0][c];
#pragma unroll
  for (int place = 0; place < kWindow; ++place) {
    float x[4];
    load_wide(x, panel_chunk(stage, window.row(place), chunk) + half * 4);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int k = place - i;
      if (k < 0 || k >= kTaps) continue;
      const bool seen = kWhole || !(place < window.begins && window.begins <= i + kTaps - 1);
#pragma unroll
      for (int c = 0; c < 4; ++c) s[i][c] = fmaf(tap[k][c], seen ? x[c] : 0.0f, s[i][c]);
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) s[i][c] *= sigmoid_approx(s[i][c]);
    u[i][0] = narrow_pair<T>(s[i][0], s[i][1]);
    u[i][1] = narrow_pair<T>(s[i][2], s[i][3]);
  }
}

// The stage becomes u, in place; `to`: u's rows from the tile's first, at the stage's columns.
template <class T>
__device__ __forceinline__ void convolve_stage(T* stage, const LaneWindow& window,
                                               const float* taps, int in, bool mirrored, T* to,
                                               std::int64_t to_stride, int rows_left) {
  const int lane = threadIdx.x % kWarp, chunk = lane % 8;
  const bool whole = __all_sync(0xffffffffu, window.whole());
  unsigned u[2][kOutputs][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* own = taps + chunk * kOctet + half * 4;
    if (whole) convolve<true>(u[half], stage, chunk, half, window, own, in);
    else convolve<false>(u[half], stage, chunk, half, window, own, in);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int row = lane / 8 * kOutputs + (mirrored ? kOutputs - 1 - i : i);
    const uint4 eight = {u[0][i][0], u[0][i][1], u[1][i][0], u[1][i][1]};
    *reinterpret_cast<uint4*>(panel_chunk(stage, row, chunk)) = eight;
    if (row < rows_left) *reinterpret_cast<uint4*>(to + row * to_stride + chunk * kOctet) = eight;
  }
  __syncwarp();
}

template <int kQuads, class T>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    forward_kernel(const __grid_constant__ Deferred<ConvLinearRmsNormForward<T>> deferred,
                   const __grid_constant__ Columns columns) {
  const ConvLinearRmsNormForward<T>& p = deferred.wait();
  const LinearRmsNormForward<T>& layer = p.layer;
  extern __shared__ __align__(128) unsigned char memory[];
  const int in = layer.shape.in, groups = layer.shape.groups;
  const int group = static_cast<int>(blockIdx.x) % groups;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  const int rows = static_cast<int>(layer.shape.rows);
  T* const w = reinterpret_cast<T*>(memory);
  T* const stages = w + kSlots<kQuads> * in;
  float* const weight = reinterpret_cast<float*>(stages + warps * kWarpElements<T>);
  float* const taps = weight + kSlots<kQuads>;
  const Octets<kQuads> octets(columns, group);
  const Tiles tiles(rows, groups);
  const bool mirrored = group > 0;

  fetch_matrix(w, layer.w + static_cast<std::int64_t>(group) * columns.out * in, columns, octets,
               in);
  commit_copies();
  fetch_weights(weight, kSlots<kQuads>, columns, layer.weight, group);
  fetch_taps(taps, p.conv.weight, p.conv.bias, group, in);

  ConvStages<T> x(stages + warp * kWarpElements<T>, p.conv, rows, group, in, tiles);
  for (int stage = 0; stage < kStages; ++stage) x.refill();
  wait_copies<kStages>();  // W
  __syncthreads();

  const std::int64_t u_stride = p.conv.shape.channels;
  for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    Sums<kQuads> sums = {};
    const LaneWindow window(tile, mirrored, p.conv.shape.length);
    T* const u = p.conv.u + std::int64_t{tile} * kTileRows * u_stride + group * in;
    for (int k = 0; k < in; k += kPanel) {
      wait_copies<kStages - 1>();
      __syncwarp();
      convolve_stage(x.oldest(), window, taps + k, in, mirrored, u + k, u_stride,
                     rows - tile * kTileRows);
      multiply_stage<kQuads>(sums, x.oldest(), w + k * kSlots<kQuads>);
      __syncwarp();
      x.refill();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = std::int64_t{tile} * kTileRows + i * 8 + lane / 4;
      finish_row<kQuads>(sums, i, row < rows, (row * groups + group) * columns.out, layer, columns,
                         octets, weight);
    }
  }
}

// False, having launched nothing, where the shape or the alignment does not allow it.
template <class T>
bool forward_fused(CudaQueue& queue, const ConvLinearRmsNormForward<T>& p) {
  const LinearRmsNormForward<T>& layer = p.layer;
  const LinearRmsNormShape& shape = layer.shape;
  const ConvForward<T>& conv = p.conv;
  if (!shape_fits(queue, shape, kLeastTiles) ||
      !aligned<T>({conv.x, conv.u, layer.w, layer.raw, layer.y}) || conv.x_stride % kOctet != 0 ||
      conv.shape.width != kTaps || conv.shape.length < kWindow ||
      shape.rows > (std::int64_t{1} << 30))
    return false;
  bool done = false;
  with_quads(shape.out(), [&]<int kQuads>() {
    const std::size_t fixed = kSlots<kQuads> * (shape.in * sizeof(T) + sizeof(float)) +
                              (kTaps + 1) * shape.in * sizeof(float);
    done = launch_forward(queue, "conv_linear_rmsnorm", forward_kernel<kQuads, T>, shape, fixed,
                          kWarpElements<T> * sizeof(T), p);
  });
  return done;
}

}  // namespace

template <class T>
void conv_linear_rmsnorm_forward(CudaQueue& queue, const ConvLinearRmsNormForward<T>& p) {
  conv_linear_rmsnorm_check(p.conv.shape, p.layer.shape);
  conv_check(p.conv.shape, p.conv.x_stride);
  linear_rmsnorm_check(p.layer.shape);
  if constexpr (sizeof(T) == 2)
    if (forward_fused(queue, p)) return;
  conv_forward(queue, p.conv);
  linear_rmsnorm_forward(queue, p.layer);
}

template void conv_linear_rmsnorm_forward(CudaQueue&, const ConvLinearRmsNormForward<float>&);
template void conv_linear_rmsnorm_forward(CudaQueue&, const ConvLinearRmsNormForward<f16>&);
template void conv_linear_rmsnorm_forward(CudaQueue&, const ConvLinearRmsNormForward<bf16>&);

}  // namespace fm
