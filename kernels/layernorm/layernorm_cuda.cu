#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/layernorm/layernorm.h"

namespace fm {
namespace {

constexpr int kWide = 4;  // columns of an access: 16 bytes of the residual stream

// A team of threads shares a row: half a warp up to width 128 (a reduction is four shuffles and
// serves two rows), a warp up to 512, a block of 256 above. A thread holds kGroups groups of four
// columns, group g at column_of(g), all in registers; groups past the width hold zeros.
template <int kTeam, int kThreads>
struct Team {
  static constexpr int kTeams = kThreads / kTeam;
  static __device__ int index() { return threadIdx.x / kTeam; }
  static __device__ int column_of(int group) {
    return (group * kTeam + static_cast<int>(threadIdx.x) % kTeam) * kWide;
  }
  // Every thread of the block must call it.
  static __device__ float sum(float x) {
    if constexpr (kTeam <= kWarp) {
      return warp_sum(x, kTeam);
    } else {
      static_assert(kTeam == kThreads, "Team: wider than a warp is the whole block");
      __shared__ float scratch[kThreads / kWarp];
      return block_sum(x, scratch);
    }
  }
};

// to = a row's columns of this thread, zeros where it has none or `active` is false.
template <class Row, int kGroups, class T>
__device__ void load_row(float (&to)[kGroups][kWide], const T* row, int width, bool active) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int column = Row::column_of(g);
    if (active && column < width) {
      load_wide(to[g], row + column);
    } else {
#pragma unroll
      for (int i = 0; i < kWide; ++i) to[g][i] = 0;
    }
  }
}

template <int kTeam, int kGroups, int kThreads, class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(LayerNormForward<T> p) {
  using Row = Team<kTeam, kThreads>;
  const int width = p.shape.width;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Row::kTeams + Row::index();
  const bool active = row < static_cast<std::int64_t>(p.shape.batch) * p.shape.length;
  float x[kGroups][kWide];
  load_row<Row>(x, p.x + row * width, width, active);

  const float inverse = 1.0f / static_cast<float>(width);
  float sum = 0, squares = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
#pragma unroll
    for (int i = 0; i < kWide; ++i) sum += x[g][i];
  const float mean = Row::sum(sum) * inverse;
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
    if (Row::column_of(g) < width)
#pragma unroll
      for (int i = 0; i < kWide; ++i) squares += (x[g][i] - mean) * (x[g][i] - mean);
  const float rstd = rsqrtf(Row::sum(squares) * inverse + static_cast<float>(kLayerNormEps));
  if (!active) return;

  const std::int64_t modulation = row / p.shape.length * p.shape.modulation_stride;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int column = Row::column_of(g);
    if (column >= width) break;
    float shift[kWide], scale[kWide];
    load_wide(shift, p.shift + modulation + column);
    load_wide(scale, p.scale + modulation + column);
#pragma unroll
    for (int i = 0; i < kWide; ++i)
      x[g][i] = (x[g][i] - mean) * rstd * (1.0f + scale[i]) + shift[i];
    store_narrow(p.y + row * width + column, x[g]);
  }
}

// A block is an image: teams take its rows in turn, each thread keeps the sums of its columns, and
// the teams' sums are added in order. Dynamic shared memory: column_sum_bytes.
template <int kTeam, int kGroups, int kThreads, class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(LayerNormBackward<T> p) {
  using Row = Team<kTeam, kThreads>;
  extern __shared__ __align__(16) float team_sums[];  // [dshift, dscale][kTeams][width]
  const int width = p.shape.width, length = p.shape.length;
  const std::int64_t image = blockIdx.x, modulation = image * p.shape.modulation_stride;
  const float inverse = 1.0f / static_cast<float>(width);
  float scale[kGroups][kWide], dshift[kGroups][kWide] = {}, dscale[kGroups][kWide] = {};
  load_row<Row>(scale, p.scale + modulation, width, true);

  // All threads take every turn, because the sums need them; a team without a row has zeros.
  for (int first = 0; first < length; first += Row::kTeams) {
    const int token = first + Row::index();
    const bool active = token < length;
    const std::int64_t row = (image * length + token) * width;
    float x[kGroups][kWide], dy[kGroups][kWide];
    load_row<Row>(x, p.x + row, width, active);
    load_row<Row>(dy, p.dy + row, width, active);

    // Two rounds of two independent reductions: x and g, then their products about the mean of x.
    float sum_x = 0, sum_g = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        sum_x += x[g][i];
        sum_g += dy[g][i] * (1.0f + scale[g][i]);
      }
    const float mean = Row::sum(sum_x) * inverse, mean_g = Row::sum(sum_g) * inverse;
    float sum_xx = 0, sum_gx = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      if (Row::column_of(g) < width)
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          const float centered = x[g][i] - mean;
          sum_xx += centered * centered;
          sum_gx += dy[g][i] * (1.0f + scale[g][i]) * centered;
        }
    const float rstd = rsqrtf(Row::sum(sum_xx) * inverse + static_cast<float>(kLayerNormEps));
    const float mean_gx = Row::sum(sum_gx) * inverse * rstd;

#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int column = Row::column_of(g);
      float dx[kWide];
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const float xh = (x[g][i] - mean) * rstd;
        dshift[g][i] += dy[g][i];
        dscale[g][i] += dy[g][i] * xh;
        dx[i] = rstd * (dy[g][i] * (1.0f + scale[g][i]) - mean_g - xh * mean_gx);
      }
      if (!active || column >= width) continue;
      if (p.accumulate) {
        float before[kWide];
        load_wide(before, p.dx + row + column);
#pragma unroll
        for (int i = 0; i < kWide; ++i) dx[i] += before[i];
      }
      store_narrow(p.dx + row + column, dx);
    }
  }

  float* shift_sums = team_sums;
  float* scale_sums = team_sums + Row::kTeams * width;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int column = Row::column_of(g);
    if (column >= width) break;
    store_narrow(shift_sums + Row::index() * width + column, dshift[g]);
    store_narrow(scale_sums + Row::index() * width + column, dscale[g]);
  }
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += kThreads) {
    float shift_sum = 0, scale_sum = 0;
    for (int team = 0; team < Row::kTeams; ++team) {
      shift_sum += shift_sums[team * width + column];
      scale_sum += scale_sums[team * width + column];
    }
    p.dshift[modulation + column] = narrow<T>(shift_sum);
    p.dscale[modulation + column] = narrow<T>(scale_sum);
  }
}

// At most 64 KB: 16 teams of a warp at width 512.
std::size_t column_sum_bytes(int teams, int width) {
  return 2 * sizeof(float) * static_cast<std::size_t>(teams) * static_cast<std::size_t>(width);
}

// Calls f<team size, groups a thread>() for the smallest team that holds a row.
template <class F>
void with_team(int width, F&& f) {
  if (width <= 128) f.template operator()<16, 2>();
  else if (width <= 256) f.template operator()<32, 2>();
  else if (width <= 512) f.template operator()<32, 4>();
  else if (width <= 1024) f.template operator()<256, 1>();
  else if (width <= 2048) f.template operator()<256, 2>();
  else f.template operator()<256, 4>();
}

}  // namespace

template <class T>
void layernorm_forward(CudaQueue& queue, const LayerNormForward<T>& p) {
  check_shape(p.shape);
  const std::int64_t rows = static_cast<std::int64_t>(p.shape.batch) * p.shape.length;
  with_team(p.shape.width, [&]<int kTeam, int kGroups>() {
    constexpr int kThreads = 256;
    const std::int64_t blocks = ceil_div(rows, kThreads / kTeam);
    FM_CHECK(blocks <= kMaxGrid, "[layernorm] too many rows for one launch, got ", rows);
    launch(queue, "layernorm_forward", forward_kernel<kTeam, kGroups, kThreads, T>,
           static_cast<unsigned>(blocks), kThreads, 0, p);
  });
}

template <class T>
void layernorm_backward(CudaQueue& queue, const LayerNormBackward<T>& p) {
  check_shape(p.shape);
  with_team(p.shape.width, [&]<int kTeam, int kGroups>() {
    // A block an image is few blocks: more warps each keep the memory busy.
    constexpr int kThreads = kTeam <= kWarp ? 512 : kTeam;
    launch(queue, "layernorm_backward", backward_kernel<kTeam, kGroups, kThreads, T>,
           static_cast<unsigned>(p.shape.batch), kThreads,
           column_sum_bytes(kThreads / kTeam, p.shape.width), p);
  });
}

template void layernorm_forward(CudaQueue&, const LayerNormForward<float>&);
template void layernorm_forward(CudaQueue&, const LayerNormForward<f16>&);
template void layernorm_forward(CudaQueue&, const LayerNormForward<bf16>&);
template void layernorm_backward(CudaQueue&, const LayerNormBackward<float>&);
template void layernorm_backward(CudaQueue&, const LayerNormBackward<f16>&);
template void layernorm_backward(CudaQueue&, const LayerNormBackward<bf16>&);

}  // namespace fm
