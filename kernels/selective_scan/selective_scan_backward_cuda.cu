// Backward: a CTA walks the blocks of steps of one image, direction and chunk from last to first.
//
// Per block every warp takes its share of the CTA's channels, a tile of 256 elements (channel,
// state) at a time: from the saved states it redoes the 7 steps with all states and decays in
// registers (one ex2 an element in all), and goes back through them. Products that the tensor cores
// can form or sum go there: delta u (x) B, exact in two parts, and the sums over channels dB and
// dC, whose 7 steps are 7 columns of one accumulator, so that they stay in registers for the whole
// block. Sums over states are left in shared memory by every lane and added up once a tile. q, the
// gradient of the state, and dA wait in shared memory for the next block. Warps only meet twice a
// block, to add up dB and dC. All sums have a fixed order.
//
// 64 and 128 states in 16 bits have a kernel of their own on compute capability 9.0, see
// selective_scan_backward_split.cuh.
#include "kernels/selective_scan/selective_scan_backward_split.cuh"
#include "kernels/selective_scan/selective_scan_backward_walk.cuh"

namespace fm {
namespace scan {
namespace {

constexpr int kMaxChannels = 256;  // of a CTA: q and dA take 128 KB at 64 states
constexpr int kSumColumns = 32, kSumSlices = 8;

// Where element i of q's and dA's layout is: its channel in the CTA and its state.
template <int kStates>
__device__ __forceinline__ int2 element_place(int i) {
  using Tile = BackwardTile<kStates>;
  const int e = i % 4, lane = i / 4 % kWarp, quad = i / 4 / kWarp % 2;
  const int strip = i / (8 * kWarp) % Tile::strips, tile = i / (8 * kWarp) / Tile::strips;
  return {tile * Tile::channels + Tile::channel_of(lane % 4, quad) + e / 2,
          strip * Tile::states + Tile::state_of(lane / 4, quad) + e % 2};
}

template <class T, int kStates>
__global__ void __launch_bounds__(BackwardTile<kStates>::max_warps* kWarp, 1)
    backward_kernel(const BackwardArgs<T> args) {
  using Tile = BackwardTile<kStates>;
  using Layout = BackwardLayout<T, kStates>;
  extern __shared__ __align__(16) unsigned char memory[];
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions;
  const int width = args.block_channels, warps = blockDim.x / kWarp;
  const Place<T, kStates> place{args, memory, static_cast<int>(threadIdx.x) % kWarp,
                                static_cast<int>(threadIdx.x) / kWarp};
  if (threadIdx.x == 0) {
    const Part part = part_of(s, args.chunks, width);
    *place.template shared<Where>(Layout::where) = {part, rows_of(s, part),
                                                    part.direction * per_direction + part.first,
                                                    per_direction, ceil_div(s.length, kBlockSteps)};
  }
  __syncthreads();
  const Part& part = place.where().part;
  const std::int64_t chunk = part.image_direction * args.chunks + part.chunk;

  for (int i = threadIdx.x; i < width * Tile::padded; i += blockDim.x) {
    const int2 at = element_place<kStates>(i);
    const bool real = args.q && at.x < part.channels && at.y < kStates;
    place.template shared<float>(place.at().q)[i] =
        real ? args.q[(chunk * per_direction + part.first + at.x) * kStates + at.y] : 0.0f;
    place.template shared<float>(place.at().da)[i] = 0;
  }
  for (int i = threadIdx.x; i < width / 8 * kWarp; i += blockDim.x)
    place.template shared<float4>(place.at().parameters)[i] = {0, 0, 0, 0};
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const bool real = c < part.channels;
    place.template shared<float>(place.at().bias)[c] =
        real ? args.p.in.dt_bias[place.where().channel + c] : 0.0f;
    place.template shared<float>(place.at().skip)[c] =
        real ? args.p.in.d[place.where().channel + c] : 0.0f;
  }
  for (int i = threadIdx.x; i < warps * static_cast<int>(sizeof(WarpShared<T, kStates>)) / 16;
       i += blockDim.x)
    place.template shared<float4>(Layout::warps)[i] = {0, 0, 0, 0};

  stage_matrices(place, part.end_block - 1);
  int block = part.end_block - 1;
  TileInputs<T, kStates> inputs;
  copies_arrived();
  __syncthreads();
  const int first_base = place.warp_index * Tile::channels;
  if (first_base < part.channels) {
    fetch_inputs(place, block, first_base, inputs);
    fetch_start(place, block, first_base, 0);
  }
  widen_matrices(place, block);
  for (; block >= part.first_block; --block) {
    forget_origin(block);
    __syncthreads();
    if (block > part.first_block) stage_matrices(place, block - 1);

    float db[Tile::strips][Tile::rows][4] = {}, dc[Tile::strips][Tile::rows][4] = {};
    int base = first_base;
    while (base < part.channels) {
      forget_origin(base);
      prepare_tile(place, block, base, inputs);
      int next_base = base + warps * Tile::channels, next_block = block;
      if (next_base >= part.channels) {
        next_base = first_base;
        --next_block;
      }
      __syncwarp();
#pragma unroll
      for (int strip = 0; strip < Tile::strips; ++strip) {
        const auto fetch_next = [&] {
          if (strip == 0 && next_block >= part.first_block)
            fetch_inputs(place, next_block, next_base, inputs);
          if (strip + 1 < Tile::strips) fetch_start(place, block, base, strip + 1);
          else if (next_block >= part.first_block) fetch_start(place, next_block, next_base, 0);
        };
        walk_strip(place, base / Tile::channels, strip, fetch_next, db[strip], dc[strip]);
      }
      __syncwarp();
      finish_tile(place, block, base);
      __syncwarp();
      base += warps * Tile::channels;
    }
    WarpShared<T, kStates>& warp = place.warp();
#pragma unroll
    for (int strip = 0; strip < Tile::strips; ++strip)
#pragma unroll
      for (int row = 0; row < Tile::rows; ++row) {
        const float(&b)[4] = db[strip][row];
        const float(&c)[4] = dc[strip][row];
        warp.gathered[strip][0][row][place.lane] = {b[0], b[1], b[2], b[3]};
        warp.gathered[strip][1][row][place.lane] = {c[0], c[1], c[2], c[3]};
      }
    copies_arrived();
    __syncthreads();
    store_matrices(place, block);
    if (block > part.first_block) widen_matrices(place, block - 1);
  }

  __syncthreads();
  float* out =
      args.parameters + (static_cast<std::int64_t>(part.image) * args.chunks + part.chunk) *
                            s.channels * (kStates + 2);
  for (int i = threadIdx.x; i < width * Tile::padded; i += blockDim.x) {
    const int2 at = element_place<kStates>(i);
    if (at.x < part.channels && at.y < kStates)
      out[static_cast<std::int64_t>(place.where().channel + at.x) * kStates + at.y] =
          place.template shared<float>(place.at().da)[i];
  }
  out += static_cast<std::int64_t>(s.channels) * kStates + place.where().channel;
  const float* parameters = place.template shared<float>(place.at().parameters);
  for (int c = threadIdx.x; c < part.channels; c += blockDim.x) {
    float dbias = 0, skip = 0;
    for (int t = 0; t < kBlockSteps; ++t) {
      const float* at = parameters + (c / 8 * kWarp + 4 * t + c % 8 / 2) * 4 + c % 2;
      dbias += at[0];
      skip += at[2];
    }
    out[c] = skip;
    out[s.channels + c] = dbias;
  }
}

// Decay rates in the order in which a warp's lanes copy them, [8 / wide][lane][wide] a strip: rows
// of channels as they are in memory would cost the copies eight times the shared memory cycles.
template <int kStates>
__global__ void rates_kernel(ScanShape s, std::int64_t count, const float* a_log, float* rates) {
  using Tile = BackwardTile<kStates>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int per_direction = s.channels / s.directions;
  const int tiles = ceil_div(per_direction, Tile::channels);
  const int lane = static_cast<int>(i / Tile::wide % kWarp);
  const int four = static_cast<int>(i / Tile::wide / kWarp % (8 / Tile::wide));
  const int strip = static_cast<int>(i / Tile::elements % Tile::strips);
  const std::int64_t tile = i / Tile::elements / Tile::strips;
  const int n = strip * Tile::states + lane / 4 * Tile::wide + static_cast<int>(i % Tile::wide);
  const int c = static_cast<int>(tile % tiles) * Tile::channels +
                Tile::channel_of(lane % 4, four / 2) + four % 2;
  const std::int64_t channel = tile / tiles * per_direction + c;
  rates[i] = c < per_direction && n < s.state ? decay_rate(a_log[channel * s.state + n]) : 0.0f;
}

// dA_log = A dA, dD and dbias: columns of `rows` partial sums, each a fixed sum of slices.
__global__ void __launch_bounds__(kSumColumns* kSumSlices)
    parameters_kernel(ScanShape s, int states, std::int64_t rows, const float* parts,
                      const float* a_log, float* da_log, float* dd, float* ddt_bias) {
  __shared__ float slices[kSumSlices][kSumColumns];
  const std::int64_t decays = static_cast<std::int64_t>(s.channels) * states;
  const std::int64_t columns = decays + 2 * static_cast<std::int64_t>(s.channels);
  const int lane = threadIdx.x % kSumColumns, slice = threadIdx.x / kSumColumns;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (std::int64_t row = slice; row < rows; row += kSumSlices)
      sum += parts[row * columns + column];
  }
  slices[slice][lane] = sum;
  __syncthreads();
  if (slice > 0 || column >= columns) return;
  for (int i = 1; i < kSumSlices; ++i) sum += slices[i][lane];
  if (column < decays) {
    const std::int64_t n = column % states, at = column / states * s.state + n;
    if (n < s.state) da_log[at] = -expf(a_log[at]) * sum;
  } else if (column < decays + s.channels) {
    dd[column - decays] = sum;
  } else {
    ddt_bias[column - decays - s.channels] = sum;
  }
}

// dB and dC where several CTAs share a direction's channels: their shares in order.
template <class T>
__global__ void matrices_kernel(ScanShape s, int channel_blocks, const float* parts, T* db, T* dc,
                                std::int64_t stride, std::int64_t direction_stride) {
  const std::int64_t groups = static_cast<std::int64_t>(s.batch) * s.length * s.directions;
  const std::int64_t count = groups * 2 * s.state;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = parts[i];
  for (int block = 1; block < channel_blocks; ++block) sum += parts[block * count + i];
  const std::int64_t n = i % s.state, matrix = i / s.state % 2, group = i / (2 * s.state);
  (matrix ? dc : db)[group / s.directions * stride + group % s.directions * direction_stride + n] =
      narrow<T>(sum);
}

// How a CTA is cut: as many channels as fit, so that dB and dC need few shares, but fewer where
// that leaves SMs without work; half the warps where shared memory is small.
struct BackwardCut {
  int warps, channels;
  bool split;
};

template <class Fits>
int cut_channels(const CudaQueue& queue, const ScanShape& s, int chunks, int unit, int limit,
                 Fits fits) {
  const int per_direction = s.channels / s.directions;
  int most = unit;
  while (most + unit <= limit && fits(most + unit)) most += unit;
  const std::int64_t parts = static_cast<std::int64_t>(s.batch) * s.directions * chunks;
  const std::int64_t filling = queue.limits.multiprocessors / parts;
  const std::int64_t shares =
      std::min<std::int64_t>(std::max<std::int64_t>(ceil_div(per_direction, most), filling),
                             ceil_div(per_direction, unit));
  return static_cast<int>(ceil_div(ceil_div<std::int64_t>(per_direction, shares), unit)) * unit;
}

template <class T, int kStates>
BackwardCut cut_backward(const CudaQueue& queue, const ScanShape& s, int chunks) {
  using Tile = BackwardTile<kStates>;
  const std::size_t limit = queue.limits.shared_bytes_per_block;
  if constexpr (can_split<T>(kStates)) {
    using Cut = Split<kStates>;
    constexpr int unit = Cut::teams * Tile::channels;
    const auto fits = [&](int channels) {
      return static_cast<std::size_t>(SplitLayout<kStates>(channels).bytes) <= limit;
    };
    if (queue.limits.compute_capability == 90 && fits(unit))
      return {Cut::walkers, cut_channels(queue, s, chunks, unit, Cut::max_channels, fits), true};
  }
  const auto fits = [&](int warps, int channels) {
    return static_cast<std::size_t>(BackwardLayout<T, kStates>(warps, channels).bytes) <= limit;
  };
  int warps = Tile::max_warps;
  while (warps > 1 && !fits(warps, warps * Tile::channels)) warps /= 2;
  return {warps,
          cut_channels(queue, s, chunks, warps * Tile::channels, kMaxChannels,
                       [&](int channels) { return fits(warps, channels); }),
          false};
}

struct BackwardPlan {
  int chunks, states, channel_blocks;
  std::int64_t rate_count;
  BackwardCut cut;
  std::int64_t rows;  // of parameter partial sums
  float *rates, *parameters, *matrices;
  Carries carries;
  std::size_t bytes;
};

template <class T>
BackwardPlan plan_backward(const CudaQueue& queue, const ScanShape& s, void* memory) {
  BackwardPlan plan{};
  plan.chunks = scan_chunks(queue, s);
  plan.states = padded_state(s.state);
  with_padded_state(s.state, [&]<int kStates>() {
    using Tile = BackwardTile<kStates>;
    plan.cut = cut_backward<T, kStates>(queue, s, plan.chunks);
    plan.rate_count = static_cast<std::int64_t>(s.directions) *
                      ceil_div(s.channels / s.directions, Tile::channels) * Tile::strips *
                      Tile::elements;
  });
  plan.channel_blocks = ceil_div(s.channels / s.directions, plan.cut.channels);
  plan.rows = static_cast<std::int64_t>(s.batch) * plan.chunks;
  Carve workspace(memory);
  plan.rates = workspace.floats(plan.rate_count);
  plan.parameters = workspace.floats(plan.rows * s.channels * (plan.states + 2));
  if (plan.channel_blocks > 1)
    plan.matrices = workspace.floats(static_cast<std::int64_t>(plan.channel_blocks) * s.batch *
                                     s.length * s.directions * 2 * s.state);
  plan.carries = Carries::carve(workspace, s, plan.chunks);
  plan.bytes = workspace.bytes();
  return plan;
}

constexpr int kSimpleThreads = 256;

// Whether two neighbouring channels can be moved at once, in all arrays.
template <class T>
bool in_pairs(const ScanShape& s, const ScanBackward<T>& p) {
  const auto even = [](const T* pointer, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (2 * sizeof(T)) == 0 && stride % 2 == 0;
  };
  return even(p.in.u, p.in.u_stride) && even(p.in.dt, p.in.dt_stride) &&
         even(p.in.z, p.in.z_stride) && even(p.dz, p.in.z_stride) && even(p.y, s.channels) &&
         even(p.d_o, s.channels) && even(p.du, s.channels) && even(p.ddt, s.channels) &&
         s.channels / s.directions % 2 == 0;
}

// The same of two neighbouring states of dB and dC.
template <class T>
bool in_pairs(const ScanBackward<T>& p) {
  const auto even = [](const T* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (2 * sizeof(T)) == 0;
  };
  return even(p.db) && even(p.dc) && p.in.bc_stride % 2 == 0 && p.in.bc_direction % 2 == 0 &&
         p.shape.state % 2 == 0;
}

int stride_of(std::int64_t stride) {
  FM_CHECK(stride >= 0 && stride <= kMaxGrid, "[selective_scan] strides must be below 2^31, got ",
           stride);
  return static_cast<int>(stride);
}

unsigned grid_of(std::int64_t count, int per_cta) {
  const std::int64_t ctas = ceil_div(count, per_cta);
  FM_CHECK(ctas <= kMaxGrid, "[selective_scan] at most 2^31 - 1 CTAs, got ", ctas);
  return static_cast<unsigned>(ctas);
}

}  // namespace
}  // namespace scan

template <class T>
std::size_t scan_backward_workspace(const CudaQueue& queue, const ScanShape& s) {
  return scan::plan_backward<T>(queue, s, nullptr).bytes;
}

template <class T>
void scan_backward(CudaQueue& queue, const ScanBackward<T>& p) {
  using namespace scan;
  const ScanShape& s = p.shape;
  FM_CHECK(static_cast<std::int64_t>(s.batch) * s.length <= kMaxGrid,
           "[selective_scan] at most 2^31 - 1 tokens, got ", s.batch, " x ", s.length);
  const BackwardPlan plan = plan_backward<T>(queue, s, p.workspace);
  with_padded_state(s.state, [&]<int kStates>() {
    launch(queue, "scan_rates", rates_kernel<kStates>, grid_of(plan.rate_count, kSimpleThreads),
           kSimpleThreads, 0, s, plan.rate_count, p.in.a_log, plan.rates);
  });
  if (plan.chunks > 1) carry_chunks<T>(queue, s, p.in, p.d_o, plan.chunks, plan.carries);

  const BackwardArgs<T> args{p,
                             plan.chunks,
                             plan.cut.channels,
                             plan.channel_blocks,
                             plan.carries.state,
                             plan.rates,
                             plan.parameters,
                             plan.matrices,
                             stride_of(p.in.u_stride),
                             stride_of(p.in.dt_stride),
                             stride_of(p.in.z_stride),
                             in_pairs(s, p),
                             wide_states(s, p.in),
                             in_pairs(p)};
  const std::int64_t ctas = plan.rows * s.directions * plan.channel_blocks;
  with_padded_state(s.state, [&]<int kStates>() {
    if constexpr (can_split<T>(kStates)) {
      if (plan.cut.split) return launch_split(queue, kStates, args, grid_of(ctas, 1));
    }
    const auto bytes = static_cast<std::size_t>(
        BackwardLayout<T, kStates>(plan.cut.warps, plan.cut.channels).bytes);
    launch(queue, "scan_backward", backward_kernel<T, kStates>, grid_of(ctas, 1),
           plan.cut.warps * kWarp, bytes, args);
  });

  if (plan.channel_blocks > 1) {
    const std::int64_t count =
        static_cast<std::int64_t>(s.batch) * s.length * s.directions * 2 * s.state;
    launch(queue, "scan_matrices", matrices_kernel<T>, grid_of(count, kSimpleThreads),
           kSimpleThreads, 0, s, plan.channel_blocks, plan.matrices, p.db, p.dc, p.in.bc_stride,
           p.in.bc_direction);
  }
}

template <class T>
void scan_backward_parameters(CudaQueue& queue, const ScanBackward<T>& p) {
  using namespace scan;
  const ScanShape& s = p.shape;
  const BackwardPlan plan = plan_backward<T>(queue, s, p.workspace);
  const std::int64_t sums = static_cast<std::int64_t>(s.channels) * (plan.states + 2);
  launch(queue, "scan_parameters", parameters_kernel, grid_of(sums, kSumColumns),
         kSumColumns * kSumSlices, 0, s, plan.states, plan.rows, plan.parameters, p.in.a_log,
         p.da_log, p.dd, p.ddt_bias);
}

template std::size_t scan_backward_workspace<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<bf16>(const CudaQueue&, const ScanShape&);
template void scan_backward(CudaQueue&, const ScanBackward<float>&);
template void scan_backward(CudaQueue&, const ScanBackward<f16>&);
template void scan_backward(CudaQueue&, const ScanBackward<bf16>&);
template void scan_backward_parameters(CudaQueue&, const ScanBackward<float>&);
template void scan_backward_parameters(CudaQueue&, const ScanBackward<f16>&);
template void scan_backward_parameters(CudaQueue&, const ScanBackward<bf16>&);

}  // namespace fm
