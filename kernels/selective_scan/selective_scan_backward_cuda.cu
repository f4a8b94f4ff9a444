// Backward: a CTA walks the blocks of steps of one image, direction and chunk from last to first.
//
// Per block every warp loops over the CTA's channels, 2 channels x 4 states a thread at a time: it
// takes the saved state, redoes the 7 steps with all states and decays in registers (one ex2 an
// element in all), and goes back through them. dB and dC gather over the channels in registers for
// the whole loop, so they are summed over lanes and warps once a block. q, the gradient of the
// state, and dA wait in shared memory for the next block. All sums have a fixed order.
#include "kernels/selective_scan/selective_scan_backward.cuh"

namespace fm {
namespace scan {
namespace {

constexpr int kMaxChannels = 256;  // of a CTA: q and dA take 128 KB at 64 states
// dC of the last steps is gathered on the way up: the last state has no other use, and without it
// the main loop fits in 255 registers.
constexpr int kDoneForward = kBlockSteps - 2;
constexpr int kSumColumns = 32, kSumSlices = 8;

// A thread's share of the channels a CTA works on at a time.
template <int kStates>
struct Share {
  int state_lane;
  int pair;  // first of its two channels
  int swap;  // 1: holds them in swapped order, as in the forward pass

  __device__ explicit Share(int thread) {
    using Cut = BackwardTile<kStates>;
    state_lane = thread % Cut::state_lanes;
    pair = thread / Cut::state_lanes * 2;
    swap = state_lane & 1;
  }
};

// Starts the copies of what this thread alone will need: no barrier between copy and use. Channels
// beyond the last read the last one's: their other factors are zero.
template <class T, int kStates>
__device__ __forceinline__ void fetch_states(const Place<T, kStates>& place, int block, int base) {
  using Cut = BackwardTile<kStates>;
  using Layout = BackwardLayout<T, kStates>;
  const BackwardArgs<T>& args = place.args;
  const Where& where = place.where();
  const int thread = thread_index();
  const Share<kStates> share(thread);
  float4* rates = place.template shared<float4>(Layout::rates) + thread;
  T* saved = place.template shared<T>(Layout::saved) + thread * 4;
  const T* states = static_cast<const T*>(args.p.states) +
                    ((where.part.image_direction * where.blocks + block) * where.per_direction +
                     where.part.first) *
                        kStates +
                    share.state_lane * 4;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int c = min(base + share.pair + (k ^ share.swap), where.part.channels - 1);
    copy_async<16>(
        rates + k * Cut::threads,
        args.rates + static_cast<std::int64_t>(where.channel + c) * kStates + share.state_lane * 4);
    if (block > 0) copy_async<4 * sizeof(T)>(saved + k * Cut::threads * 4, states + c * kStates);
  }
}

// A block of steps up and down again for the thread's 2 channels and 4 states, from the saved
// state. Leaves q and dA in shared memory, the sums over states in `sums`.
template <class T, int kStates>
__device__ __forceinline__ void walk_block(const Place<T, kStates>& place, int base,
                                           const float (&rate)[2][4], const float (&start)[2][4],
                                           float (&gathered)[kBlockSteps][8]) {
  using Cut = BackwardTile<kStates>;
  using Layout = BackwardLayout<T, kStates>;
  const Share<kStates> share(thread_index());
  const int state_lane = share.state_lane;
  const int channel[2] = {base + share.pair + share.swap, base + share.pair + 1 - share.swap};
  const float4* terms[2];
  float* q_at[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    terms[k] = place.template shared<float4>(place.at().terms) + channel[k] * kBlockSteps;
    q_at[k] = place.template shared<float>(Layout::q) + channel[k] * kStates + state_lane * 4;
  }
  float h[kBlockSteps + 1][2][4], decay[kBlockSteps][2][4], q[2][4];
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int e = 0; e < 4; ++e) h[0][k][e] = start[k][e];
  const float* matrices = place.template shared<float>(Layout::matrices) + state_lane * 4;
#pragma unroll
  for (int t = 0; t < kBlockSteps; ++t) {
    float b[4];
    load_wide(b, matrices + 2 * t * kStates);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float2 delta = *reinterpret_cast<const float2*>(terms[k] + t);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        decay[t][k][e] = fast_exp2(delta.x * rate[k][e]);
        h[t + 1][k][e] = fmaf(decay[t][k][e], h[t][k][e], delta.y * b[e]);
        if (t >= kDoneForward)
          gathered[t][4 + e] = fmaf(terms[k][t].z, h[t + 1][k][e], gathered[t][4 + e]);
      }
    }
  }

  float da[2][4] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) load_wide(q[k], q_at[k]);
#pragma unroll
  for (int t = kBlockSteps - 1; t >= 0; --t) {
    float b[4], c[4], sum_b[2] = {}, sum_a[2] = {};  // over states: g B, and A q h
    load_wide(b, matrices + 2 * t * kStates);
    load_wide(c, matrices + (2 * t + 1) * kStates);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float4 term = terms[k][t];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float g = fmaf(c[e], term.z, q[k][e]);
        gathered[t][e] = fmaf(term.y, g, gathered[t][e]);
        if (t < kDoneForward) gathered[t][4 + e] = fmaf(term.z, h[t + 1][k][e], gathered[t][4 + e]);
        sum_b[k] = fmaf(b[e], g, sum_b[k]);
        q[k][e] = g * decay[t][k][e];
        const float through = q[k][e] * h[t][k][e];
        sum_a[k] = fmaf(rate[k][e], through, sum_a[k]);
        da[k][e] = fmaf(term.x, through, da[k][e]);
      }
    }
    sum_b[0] += __shfl_xor_sync(0xffffffffu, sum_b[1], 1);
    sum_a[0] += __shfl_xor_sync(0xffffffffu, sum_a[1], 1);
    float* sums =
        place.template shared<float>(place.at().sums) + (channel[0] * kBlockSteps + t) * 2;
    if constexpr (Cut::state_lanes == 2) {
      *reinterpret_cast<float2*>(sums) = {sum_b[0], sum_a[0]};
    } else {
      const bool high = state_lane & 2;
      float sum = (high ? sum_a[0] : sum_b[0]) +
                  __shfl_xor_sync(0xffffffffu, high ? sum_b[0] : sum_a[0], 2);
#pragma unroll
      for (int mask = 4; mask < Cut::state_lanes; mask *= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (state_lane < 4) sums[high] = sum;
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    store_narrow(q_at[k], q[k]);
    float* da_at = q_at[k] + place.args.block_channels * kStates;
    float before[4];
    load_wide(before, da_at);
#pragma unroll
    for (int e = 0; e < 4; ++e) da[k][e] += before[e];
    store_narrow(da_at, da[k]);
  }
}

template <class T, int kStates>
__global__ void __launch_bounds__(BackwardTile<kStates>::threads,
                                  BackwardTile<kStates>::blocks_per_sm)
    backward_kernel(const BackwardArgs<T> args) {
  using Cut = BackwardTile<kStates>;
  using Layout = BackwardLayout<T, kStates>;
  extern __shared__ __align__(16) unsigned char memory[];
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions;
  const int width = args.block_channels;
  const Place<T, kStates> place{args, memory};
  if (threadIdx.x == 0) {
    const Part part = part_of(s, args.chunks, width);
    *place.template shared<Where>(Layout::where) = {part, rows_of(s, part),
                                                    part.direction * per_direction + part.first,
                                                    per_direction, ceil_div(s.length, kBlockSteps)};
  }
  __syncthreads();
  const Part& part = place.where().part;

  for (int i = threadIdx.x; i < width * kStates; i += Cut::threads) {
    const std::int64_t chunk = part.image_direction * args.chunks + part.chunk;
    const bool real = args.q && i < part.channels * kStates;
    place.template shared<float>(Layout::q)[i] =
        real ? args.q[(chunk * per_direction + part.first) * kStates + i] : 0.0f;
    place.template shared<float>(place.at().da)[i] = 0;
  }
  for (int c = threadIdx.x; c < width; c += Cut::threads) {
    float* parameters = place.template shared<float>(place.at().parameters);
    parameters[c] = c < part.channels ? args.p.in.dt_bias[place.where().channel + c] : 0.0f;
    parameters[width + c] = c < part.channels ? args.p.in.d[place.where().channel + c] : 0.0f;
    parameters[2 * width + c] = parameters[3 * width + c] = 0;
  }
  for (int i = threadIdx.x; i < width * kBlockSteps; i += Cut::threads)
    place.template shared<float2>(place.at().sums)[i] = {0, 0};

  stage_block(place, part.end_block - 1);
  fetch_states(place, part.end_block - 1, 0);
  for (int block = part.end_block - 1; block >= part.first_block; --block) {
    forget_origin(block);
    copies_arrived();
    __syncthreads();
    prepare_block(place, block);
    add_parameters(place);
    __syncthreads();

    float gathered[kBlockSteps][8] = {};
    for (int base = 0; base < width; base += Cut::channels) {
      copies_arrived();
      float rate[2][4], start[2][4];
      const int thread = thread_index();
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        load_wide(rate[k],
                  place.template shared<float>(Layout::rates) + (k * Cut::threads + thread) * 4);
        if (block > 0)
          load_wide(start[k],
                    place.template shared<T>(Layout::saved) + (k * Cut::threads + thread) * 4);
        else start[k][0] = start[k][1] = start[k][2] = start[k][3] = 0;
      }
      forget_origin(base);
      if (base == 0 && block > part.first_block) stage_block(place, block - 1);
      if (base + Cut::channels < width) fetch_states(place, block, base + Cut::channels);
      else if (block > part.first_block) fetch_states(place, block - 1, 0);
      if (base + thread / kWarp * (2 * Cut::pairs) >= part.channels) continue;  // a whole warp

      walk_block(place, base, rate, start, gathered);
    }
    __syncthreads();
    finish_channels(place, block);
    __syncthreads();
    gather_matrices(place, gathered);
    __syncthreads();
    store_matrices(place, block);
  }

  add_parameters(place);
  __syncthreads();
  float* out =
      args.parameters + (static_cast<std::int64_t>(part.image) * args.chunks + part.chunk) *
                            s.channels * (kStates + 2);
  for (int i = threadIdx.x; i < part.channels * kStates; i += Cut::threads)
    out[static_cast<std::int64_t>(place.where().channel) * kStates + i] =
        place.template shared<float>(place.at().da)[i];
  out += static_cast<std::int64_t>(s.channels) * kStates + place.where().channel;
  const float* parameters = place.template shared<float>(place.at().parameters);
  for (int c = threadIdx.x; c < part.channels; c += Cut::threads) {
    out[s.channels + c] = parameters[2 * width + c];
    out[c] = parameters[3 * width + c];
  }
}

__global__ void rates_kernel(ScanShape s, int states, const float* a_log, float* rates) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<std::int64_t>(s.channels) * states) return;
  const int n = static_cast<int>(i % states);
  rates[i] = n < s.state ? decay_rate(a_log[i / states * s.state + n]) : 0.0f;
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
  if (column < columns)
    for (std::int64_t row = slice; row < rows; row += kSumSlices)
      sum += parts[row * columns + column];
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

// How many channels a CTA has: as many as fit, so that dB and dC need few shares, but fewer where
// that leaves SMs without work.
template <class T, int kStates>
int block_channels(const CudaQueue& queue, const ScanShape& s, int chunks) {
  constexpr int unit = BackwardTile<kStates>::channels;
  const int per_direction = s.channels / s.directions;
  // An SM has 1 KB more than a CTA may use, and keeps 1 KB for each CTA.
  constexpr std::size_t reserved = 1024;
  const std::size_t budget =
      (queue.limits.shared_bytes_per_block + reserved) / BackwardTile<kStates>::blocks_per_sm -
      reserved;
  int most = unit;
  while (most + unit <= kMaxChannels &&
         static_cast<std::size_t>(BackwardLayout<T, kStates>(most + unit).bytes) <= budget)
    most += unit;
  const std::int64_t parts = static_cast<std::int64_t>(s.batch) * s.directions * chunks;
  const std::int64_t filling = queue.limits.multiprocessors / parts;
  const std::int64_t shares =
      std::min<std::int64_t>(std::max<std::int64_t>(ceil_div(per_direction, most), filling),
                             ceil_div(per_direction, unit));
  return static_cast<int>(ceil_div(ceil_div<std::int64_t>(per_direction, shares), unit)) * unit;
}

struct BackwardPlan {
  int chunks, block_channels, channel_blocks, states;
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
    plan.block_channels = block_channels<T, kStates>(queue, s, plan.chunks);
  });
  plan.channel_blocks = ceil_div(s.channels / s.directions, plan.block_channels);
  plan.rows = static_cast<std::int64_t>(s.batch) * plan.chunks;
  Carve workspace(memory);
  plan.rates = workspace.floats(static_cast<std::int64_t>(s.channels) * plan.states);
  plan.parameters = workspace.floats(plan.rows * s.channels * (plan.states + 2));
  if (plan.channel_blocks > 1)
    plan.matrices = workspace.floats(static_cast<std::int64_t>(plan.channel_blocks) * s.batch *
                                     s.length * s.directions * 2 * s.state);
  plan.carries = Carries::carve(workspace, s, plan.chunks);
  plan.bytes = workspace.bytes();
  return plan;
}

constexpr int kSimpleThreads = 256;

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
  const BackwardPlan plan = plan_backward<T>(queue, s, p.workspace);
  const int per_direction = s.channels / s.directions;
  const std::int64_t decays = static_cast<std::int64_t>(s.channels) * plan.states;
  launch(queue, "scan_rates", rates_kernel, grid_of(decays, kSimpleThreads), kSimpleThreads, 0, s,
         plan.states, p.in.a_log, plan.rates);
  if (plan.chunks > 1) carry_chunks<T>(queue, s, p.in, p.d_o, plan.chunks, plan.carries);

  const BackwardArgs<T> args{
      p,
      plan.chunks,
      plan.block_channels,
      plan.channel_blocks,
      plan.carries.state,
      plan.rates,
      plan.parameters,
      plan.matrices,
      wide_channels(s, p.in) && in_pieces(p.y, s.channels, per_direction) && in_pieces(p.d_o),
      wide_states(s, p.in)};
  const std::int64_t ctas = plan.rows * s.directions * plan.channel_blocks;
  with_padded_state(s.state, [&]<int kStates>() {
    const auto bytes =
        static_cast<std::size_t>(BackwardLayout<T, kStates>(plan.block_channels).bytes);
    launch(queue, "scan_backward", backward_kernel<T, kStates>, grid_of(ctas, 1),
           BackwardTile<kStates>::threads, bytes, args);
  });

  launch(queue, "scan_parameters", parameters_kernel,
         grid_of(decays + 2 * static_cast<std::int64_t>(s.channels), kSumColumns),
         kSumColumns * kSumSlices, 0, s, plan.states, plan.rows, plan.parameters, p.in.a_log,
         p.da_log, p.dd, p.ddt_bias);
  if (plan.channel_blocks > 1) {
    const std::int64_t count =
        static_cast<std::int64_t>(s.batch) * s.length * s.directions * 2 * s.state;
    launch(queue, "scan_matrices", matrices_kernel<T>, grid_of(count, kSimpleThreads),
           kSimpleThreads, 0, s, plan.channel_blocks, plan.matrices, p.db, p.dc, p.in.bc_stride,
           p.in.bc_direction);
  }
}

template std::size_t scan_backward_workspace<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<bf16>(const CudaQueue&, const ScanShape&);
template void scan_backward(CudaQueue&, const ScanBackward<float>&);
template void scan_backward(CudaQueue&, const ScanBackward<f16>&);
template void scan_backward(CudaQueue&, const ScanBackward<bf16>&);

}  // namespace fm
