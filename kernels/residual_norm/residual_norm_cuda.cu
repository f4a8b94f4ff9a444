#include "kernels/base/launch.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/residual_norm/residual_norm.h"

namespace fm {
namespace {

// Columns of an access. A warp's accesses to a row of 128 are then 512 contiguous bytes of a float
// stream, 256 of everything narrow.
constexpr int kWide = 4;
constexpr int kForwardThreads = 256;

// Threads of a block that is an image, and blocks an SM: 64 registers a group of four columns, so
// that nothing spills, and 1024 threads an SM where they are enough.
template <int kTeam, int kGroups>
constexpr int kBackwardThreads = kTeam > 32    ? kTeam
                                 : kGroups > 2 ? 256
                                               : 512;
template <int kTeam, int kGroups>
constexpr int kBackwardBlocks = 1024 / (kBackwardThreads<kTeam, kGroups> * kGroups);

// A team of threads shares a row: a warp up to width 512, a block of 256 above. A thread holds
// kGroups groups of four columns, group g at column_of(g), all in registers.
template <int kTeam, int kGroups, int kThreads>
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

// A thread's columns of a row as they lie in memory, in words: narrow elements held one by one
// would cost a register and a move each.
template <int kGroups, class T>
struct Packed {
  static constexpr int kWords = kWide * static_cast<int>(sizeof(T)) / 4;
  Vec<unsigned, kWords> at[kGroups] = {};

  __device__ float operator()(int group, int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(at[group].at[i]);
    } else {
      const unsigned word = at[group].at[i / 2];
      return widen(T{static_cast<std::uint16_t>(i % 2 ? word >> 16 : word & 0xffffu)});
    }
  }
};

// Zeros past the width.
template <class Row, int kGroups, class T>
__device__ __forceinline__ Packed<kGroups, T> load_row(const T* row, int width) {
  Packed<kGroups, T> columns;
  using Words = Vec<unsigned, Packed<kGroups, T>::kWords>;
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
    if (Row::column_of(g) < width)
      columns.at[g] = *reinterpret_cast<const Words*>(row + Row::column_of(g));
  return columns;
}

template <class Row, int kGroups, class T>
__device__ __forceinline__ void store_row(T* row, const float (&from)[kGroups][kWide], int width) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
    if (Row::column_of(g) < width) store_narrow(row + Row::column_of(g), from[g]);
}

// A block is kTeams rows of one image.
template <int kTeam, int kGroups, int kThreads, class T, class X>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Deferred<ResidualNormForward<T, X>> deferred, unsigned blocks_per_image) {
  const ResidualNormForward<T, X>& p = deferred.wait();
  using Row = Team<kTeam, kGroups, kThreads>;
  const int width = p.shape.width;
  const std::int64_t image = blockIdx.x / blocks_per_image;
  const int token = static_cast<int>(blockIdx.x % blocks_per_image) * Row::kTeams + Row::index();
  const bool active = token < p.shape.length;
  const std::int64_t row = (image * p.shape.length + (active ? token : 0)) * width;
  const auto stream = load_row<Row, kGroups>(p.x + row, width);
  float x[kGroups][kWide];
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
#pragma unroll
    for (int i = 0; i < kWide; ++i) x[g][i] = stream(g, i);
  if (p.f) {
    const auto f = load_row<Row, kGroups>(p.f + row, width);
    const auto gate = load_row<Row, kGroups>(p.gate + image * p.shape.gate_stride, width);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < kWide; ++i) x[g][i] = widen(narrow<X>(x[g][i] + gate(g, i) * f(g, i)));
    if (active) store_row<Row>(p.out + row, x, width);
  }

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

  const std::int64_t modulation = image * p.shape.modulation_stride;
  const auto shift = load_row<Row, kGroups>(p.shift + modulation, width);
  const auto scale = load_row<Row, kGroups>(p.scale + modulation, width);
#pragma unroll
  for (int g = 0; g < kGroups; ++g)
#pragma unroll
    for (int i = 0; i < kWide; ++i)
      x[g][i] = (x[g][i] - mean) * rstd * (1.0f + scale(g, i)) + shift(g, i);
  store_row<Row>(p.y + row, x, width);
}

// to[column] = the teams' sums of it, added in order. `sums` [kTeams][width] may be used again at
// once.
template <class Row, int kThreads, int kGroups, class T>
__device__ void add_teams(T* to, const float (&mine)[kGroups][kWide], float* sums, int width) {
  store_row<Row>(sums + Row::index() * width, mine, width);
  __syncthreads();
  for (int column = threadIdx.x; column < width; column += kThreads) {
    float sum = 0;
    for (int team = 0; team < Row::kTeams; ++team) sum += sums[team * width + column];
    to[column] = narrow<T>(sum);
  }
  __syncthreads();
}

// A block is an image: teams take its rows in turn, kRows of them at a time so that enough bytes
// are in flight, and each thread keeps the sums of its columns. Dynamic shared memory:
// column_sum_bytes.
template <int kTeam, int kGroups, int kRows, int kThreads, int kBlocks, class T, class X>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_kernel(Deferred<ResidualNormBackward<T, X>> deferred) {
  const ResidualNormBackward<T, X>& p = deferred.wait();
  using Row = Team<kTeam, kGroups, kThreads>;
  extern __shared__ __align__(16) float team_sums[];  // [kTeams][width]
  const int width = p.shape.width, length = p.shape.length;
  const std::int64_t image = blockIdx.x, modulation = image * p.shape.modulation_stride;
  const bool has_branch = p.f != nullptr;
  const std::int64_t first_row = image * length * width;
  const float inverse = 1.0f / static_cast<float>(width);
  const auto scale = load_row<Row, kGroups>(p.scale + modulation, width);
  Packed<kGroups, T> gate;
  if (has_branch) gate = load_row<Row, kGroups>(p.gate + image * p.shape.gate_stride, width);
  float dshift[kGroups][kWide] = {}, dscale[kGroups][kWide] = {}, dgate[kGroups][kWide] = {};

  // All threads take every turn, because the sums need them; a team past the end reads the last
  // row again, and keeps nothing.
  for (int turn = 0; turn < length; turn += Row::kTeams * kRows) {
    Packed<kGroups, X> out[kRows], dout[kRows];
    Packed<kGroups, T> dy[kRows], f[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int token = min(turn + r * Row::kTeams + Row::index(), length - 1);
      const std::int64_t row = first_row + token * width;
      out[r] = load_row<Row, kGroups>(p.out + row, width);
      dy[r] = load_row<Row, kGroups>(p.dy + row, width);
      if (p.accumulate) dout[r] = load_row<Row, kGroups>(p.dx + row, width);
      if (has_branch) f[r] = load_row<Row, kGroups>(p.f + row, width);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Two rounds of two independent reductions: out and g, then their products about the mean.
      float sum = 0, sum_g = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          sum += out[r](g, i);
          sum_g += dy[r](g, i) * (1.0f + scale(g, i));
        }
      const float mean = Row::sum(sum) * inverse, mean_g = Row::sum(sum_g) * inverse;
      float squares = 0, sum_gx = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        if (Row::column_of(g) < width)
#pragma unroll
          for (int i = 0; i < kWide; ++i) {
            const float centered = out[r](g, i) - mean;
            squares += centered * centered;
            sum_gx += dy[r](g, i) * (1.0f + scale(g, i)) * centered;
          }
      const float rstd = rsqrtf(Row::sum(squares) * inverse + static_cast<float>(kLayerNormEps));
      const float mean_gx = Row::sum(sum_gx) * inverse * rstd;

      const int token = turn + r * Row::kTeams + Row::index();
      if (token >= length) continue;
      float dx[kGroups][kWide], df[kGroups][kWide];
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          const float xh = (out[r](g, i) - mean) * rstd, dy_i = dy[r](g, i);
          dshift[g][i] += dy_i;
          dscale[g][i] += dy_i * xh;
          dx[g][i] = dout[r](g, i) + rstd * (dy_i * (1.0f + scale(g, i)) - mean_g - xh * mean_gx);
          dgate[g][i] += dx[g][i] * f[r](g, i);
          df[g][i] = gate(g, i) * dx[g][i];
        }
      const std::int64_t row = first_row + token * width;
      store_row<Row>(p.dx + row, dx, width);
      if (has_branch) store_row<Row>(p.df + row, df, width);
    }
  }

  add_teams<Row, kThreads>(p.dshift + modulation, dshift, team_sums, width);
  add_teams<Row, kThreads>(p.dscale + modulation, dscale, team_sums, width);
  if (has_branch)
    add_teams<Row, kThreads>(p.dgate + image * p.shape.gate_stride, dgate, team_sums, width);
}

// At most 16 KB.
std::size_t column_sum_bytes(int teams, int width) {
  return sizeof(float) * static_cast<std::size_t>(teams) * static_cast<std::size_t>(width);
}

// Calls f<team size, groups a thread>() for the smallest team that holds a row.
template <class F>
void with_team(int width, F&& f) {
  if (width <= 128) f.template operator()<32, 1>();
  else if (width <= 256) f.template operator()<32, 2>();
  else if (width <= 512) f.template operator()<32, 4>();
  else if (width <= 1024) f.template operator()<256, 1>();
  else if (width <= 2048) f.template operator()<256, 2>();
  else f.template operator()<256, 4>();
}

}  // namespace

template <class T, class X>
void residual_norm_forward(CudaQueue& queue, const ResidualNormForward<T, X>& p) {
  check_shape(p.shape, true);
  with_team(p.shape.width, [&]<int kTeam, int kGroups>() {
    const int blocks = ceil_div(p.shape.length, kForwardThreads / kTeam);
    const std::int64_t grid = static_cast<std::int64_t>(p.shape.batch) * blocks;
    FM_CHECK(grid <= kMaxGrid, "[residual_norm] too large for one launch, got a batch of ",
             p.shape.batch, " images of ", blocks, " blocks");
    launch(queue, "residual_norm_forward", forward_kernel<kTeam, kGroups, kForwardThreads, T, X>,
           static_cast<unsigned>(grid), kForwardThreads, 0, p, static_cast<unsigned>(blocks));
  });
}

template <class T, class X>
void residual_norm_backward(CudaQueue& queue, const ResidualNormBackward<T, X>& p) {
  check_shape(p.shape);
  with_team(p.shape.width, [&]<int kTeam, int kGroups>() {
    constexpr int kThreads = kBackwardThreads<kTeam, kGroups>;
    constexpr int kRows = kGroups == 1 ? 2 : 1;
    launch(queue, "residual_norm_backward",
           backward_kernel<kTeam, kGroups, kRows, kThreads, kBackwardBlocks<kTeam, kGroups>, T, X>,
           static_cast<unsigned>(p.shape.batch), kThreads,
           column_sum_bytes(kThreads / kTeam, p.shape.width), p);
  });
}

template void residual_norm_forward(CudaQueue&, const ResidualNormForward<float, float>&);
template void residual_norm_forward(CudaQueue&, const ResidualNormForward<f16, float>&);
template void residual_norm_forward(CudaQueue&, const ResidualNormForward<f16, f16>&);
template void residual_norm_forward(CudaQueue&, const ResidualNormForward<bf16, float>&);
template void residual_norm_forward(CudaQueue&, const ResidualNormForward<bf16, bf16>&);
template void residual_norm_backward(CudaQueue&, const ResidualNormBackward<float, float>&);
template void residual_norm_backward(CudaQueue&, const ResidualNormBackward<f16, float>&);
template void residual_norm_backward(CudaQueue&, const ResidualNormBackward<f16, f16>&);
template void residual_norm_backward(CudaQueue&, const ResidualNormBackward<bf16, float>&);
template void residual_norm_backward(CudaQueue&, const ResidualNormBackward<bf16, bf16>&);

}  // namespace fm
