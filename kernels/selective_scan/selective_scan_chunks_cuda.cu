// The chunked path: how many chunks, and the pass that finds what every chunk starts with.
//
// h_end = P h_start + S with P = exp(A sum of delta) and S the end state scanned from zero; q, the
// gradient of the state, obeys the same recurrence from the chunk's end to its start. So: scan
// every chunk from zero for S, carry over the chunks (one exp a chunk and state, not a step), and
// let the normal kernels start from the carried values.
#include "kernels/selective_scan/selective_scan.cuh"

namespace fm {
namespace scan {
namespace {

constexpr int kMinChunkBlocks = 4;  // 28 steps: below that the second scan is not worth it
constexpr int kCarryThreads = 128;

template <class T>
struct LocalArgs {
  ScanShape shape;
  ScanInputs<T> in;
  const T* d_o;  // null: forward
  int chunks;
  Carries carries;
};

template <int kStates>
struct alignas(16) LocalShared {
  static constexpr int steps = Tile<kStates>::steps;
  alignas(16) float matrix[steps][kStates];        // B; backward: C
  alignas(16) float2 delta[steps][kTileChannels];  // delta, and delta u; backward: dy
  float bias[kTileChannels];
};

template <bool kBackward, class T, int kStates>
__device__ __forceinline__ void load_group(LocalShared<kStates>& shared, const LocalArgs<T>& args,
                                           const Part& part, const Rows& rows, int step,
                                           int count) {
  const int thread = thread_index();
  const ScanInputs<T>& in = args.in;
  const ScanShape& s = args.shape;
  const int channel = part.direction * (s.channels / s.directions) + part.first;
#pragma unroll 2  // more would cost the scan's registers
  for (int i = thread; i < count * kTileChannels; i += Tile<kStates>::threads) {
    const int t = i / kTileChannels, c = i % kTileChannels;
    const std::int64_t row = rows.at(step + t);
    float delta = 0, input = 0;
    if (c < part.channels) {
      delta = softplus(widen(in.dt[row * in.dt_stride + channel + c]) + shared.bias[c]);
      if constexpr (kBackward) {
        const float z = widen(in.z[row * in.z_stride + channel + c]);
        input = widen(args.d_o[row * s.channels + channel + c]) * z * sigmoid(z);
      } else {
        input = delta * widen(in.u[row * in.u_stride + channel + c]);
      }
    }
    shared.delta[t][c] = {delta, input};
  }
  const T* matrix = kBackward ? in.c : in.b;
#pragma unroll 2
  for (int i = thread; i < count * kStates; i += Tile<kStates>::threads) {
    const int t = i / kStates, n = i % kStates;
    const std::int64_t at = rows.at(step + t) * in.bc_stride + part.direction * in.bc_direction;
    shared.matrix[t][n] = n < s.state ? widen(matrix[at + n]) : 0.0f;
  }
}

// One chunk from zero: h = a h + delta u B upwards, or q = a (q + dy C) downwards.
template <bool kBackward, class T, int kStates>
__global__ void __launch_bounds__(Tile<kStates>::threads, Tile<kStates>::blocks_per_sm)
    local_kernel(const LocalArgs<T> args) {
  using Cut = Tile<kStates>;
  constexpr int fours = Cut::per_thread / 4;
  __shared__ LocalShared<kStates> shared;
  const ScanShape& s = args.shape;
  const int per_direction = s.channels / s.directions;
  const Part part = part_of(s, args.chunks, kTileChannels);
  const Rows rows = rows_of(s, part);
  const int first_step = part.first_block * kBlockSteps;
  const int end_step = min(part.end_block * kBlockSteps, s.length);
  const int first_channel = part.direction * per_direction + part.first;
  const int lane = threadIdx.x % Cut::lanes;
  const int pair = threadIdx.x / Cut::lanes * 2;

  for (int c = threadIdx.x; c < part.channels; c += Cut::threads)
    shared.bias[c] = args.in.dt_bias[first_channel + c];
  float h[2][Cut::per_thread], rate[2][Cut::per_thread], delta_sum[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int i = 0; i < Cut::per_thread; ++i) {
      const int n = (i / 4 * Cut::lanes + lane) * 4 + i % 4;
      const bool real = pair + k < part.channels && n < s.state;
      rate[k][i] =
          real ? decay_rate(
                     args.in
                         .a_log[static_cast<std::int64_t>(first_channel + pair + k) * s.state + n])
               : 0.0f;
      h[k][i] = 0;
    }

  const int groups = ceil_div(end_step - first_step, Cut::steps);
  for (int group = 0; group < groups; ++group) {
    const int step = first_step + (kBackward ? groups - 1 - group : group) * Cut::steps;
    const int count = min(Cut::steps, end_step - step);
    __syncthreads();
    load_group<kBackward>(shared, args, part, rows, step, count);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int t = kBackward ? count - 1 - i : i;
      const float2 delta[2] = {shared.delta[t][pair], shared.delta[t][pair + 1]};
      delta_sum[0] += delta[0].x;
      delta_sum[1] += delta[1].x;
#pragma unroll
      for (int j = 0; j < fours; ++j) {
        float m[4];
        load_wide(m, &shared.matrix[t][(j * Cut::lanes + lane) * 4]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float& state = h[k][4 * j + e];
            const float decay = fast_exp2(delta[k].x * rate[k][4 * j + e]);
            if constexpr (kBackward) state = decay * fmaf(delta[k].y, m[e], state);
            else state = fmaf(decay, state, delta[k].y * m[e]);
          }
      }
    }
  }

  const std::int64_t row =
      (part.image_direction * args.chunks + part.chunk) * per_direction + part.first + pair;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (pair + k >= part.channels) continue;
    if (lane == 0) args.carries.delta[row + k] = delta_sum[k];
#pragma unroll
    for (int j = 0; j < fours; ++j) {
      float four[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) four[e] = h[k][4 * j + e];
      store_narrow(args.carries.state + (row + k) * kStates + (j * Cut::lanes + lane) * 4, four);
    }
  }
}

// In place: what a chunk ends with from zero becomes what it starts with.
__global__ void __launch_bounds__(kCarryThreads)
    carry_kernel(ScanShape s, const float* a_log, int states, int chunks, bool backward,
                 Carries carries) {
  const int per_direction = s.channels / s.directions;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kCarryThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(s.batch) * s.channels * states) return;
  const int n = static_cast<int>(index % states);
  const std::int64_t row = index / states;  // image, direction, channel
  const int c = static_cast<int>(row % per_direction);
  const std::int64_t image_direction = row / per_direction;
  const int direction = static_cast<int>(image_direction % s.directions);
  const float rate =
      n < s.state
          ? decay_rate(
                a_log[static_cast<std::int64_t>(direction * per_direction + c) * s.state + n])
          : 0.0f;
  float carried = 0;
  for (int i = 0; i < chunks; ++i) {
    const int chunk = backward ? chunks - 1 - i : i;
    const std::int64_t at = (image_direction * chunks + chunk) * per_direction + c;
    const float local = carries.state[at * states + n];
    carries.state[at * states + n] = carried;
    carried = fmaf(fast_exp2(rate * carries.delta[at]), carried, local);
  }
}

template <bool kBackward, class T>
void launch_local(CudaQueue& queue, const LocalArgs<T>& args, unsigned ctas) {
  with_padded_state(args.shape.state, [&]<int kStates>() {
    launch(queue, "scan_local", local_kernel<kBackward, T, kStates>, dim3(ctas),
           Tile<kStates>::threads, 0, args);
  });
}

}  // namespace

void check_shape(const ScanShape& s) {
  FM_CHECK(s.batch >= 1 && s.length >= 1 && s.channels >= 1,
           "[selective_scan] batch, length and channels must be positive, got [", s.batch, ", ",
           s.length, ", ", s.channels, "]");
  FM_CHECK(s.state >= 1 && s.state <= 128, "[selective_scan] state must be 1 to 128, got ",
           s.state);
  FM_CHECK(s.directions == 1 || s.directions == 2,
           "[selective_scan] directions must be 1 or 2, got ", s.directions);
  FM_CHECK(s.channels % s.directions == 0, "[selective_scan] directions must divide channels, got ",
           s.directions, " and ", s.channels);
  FM_CHECK(s.chunks >= 0, "[selective_scan] chunks must not be negative, got ", s.chunks);
}

template <class T>
void carry_chunks(CudaQueue& queue, const ScanShape& s, const ScanInputs<T>& in, const T* d_o,
                  int chunks, const Carries& carries) {
  const LocalArgs<T> args{s, in, d_o, chunks, carries};
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions * chunks *
                            ceil_div(s.channels / s.directions, kTileChannels);
  const int states = padded_state(s.state);
  const std::int64_t carry_ctas =
      ceil_div(static_cast<std::int64_t>(s.batch) * s.channels * states, kCarryThreads);
  FM_CHECK(ctas <= kMaxGrid && carry_ctas <= kMaxGrid,
           "[selective_scan] at most 2^31 - 1 CTAs, got ", std::max(ctas, carry_ctas));
  if (d_o) launch_local<true>(queue, args, static_cast<unsigned>(ctas));
  else launch_local<false>(queue, args, static_cast<unsigned>(ctas));
  launch(queue, "scan_carry", carry_kernel, dim3(static_cast<unsigned>(carry_ctas)), kCarryThreads,
         0, s, in.a_log, states, chunks, d_o != nullptr, carries);
}

template void carry_chunks(CudaQueue&, const ScanShape&, const ScanInputs<float>&, const float*,
                           int, const Carries&);
template void carry_chunks(CudaQueue&, const ScanShape&, const ScanInputs<f16>&, const f16*, int,
                           const Carries&);
template void carry_chunks(CudaQueue&, const ScanShape&, const ScanInputs<bf16>&, const bf16*, int,
                           const Carries&);

}  // namespace scan

// Two CTAs an SM keep the machine busy. Scanning twice only pays with three or more chunks side by
// side.
int scan_chunks(const CudaQueue& queue, const ScanShape& s) {
  scan::check_shape(s);
  const int blocks = ceil_div(s.length, scan::kBlockSteps);
  if (s.chunks > 0) return std::min(s.chunks, blocks);
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions *
                            ceil_div(s.channels / s.directions, scan::kTileChannels);
  const std::int64_t filling = 2 * queue.limits.multiprocessors / ctas;
  const auto chunks = std::min<std::int64_t>(filling, blocks / scan::kMinChunkBlocks);
  return chunks >= 3 ? static_cast<int>(chunks) : 1;
}

template <class T>
std::size_t scan_states_bytes(const CudaQueue&, const ScanShape& s) {
  scan::check_shape(s);
  return static_cast<std::size_t>(s.batch) * ceil_div(s.length, scan::kBlockSteps) * s.channels *
         scan::padded_state(s.state) * sizeof(T);
}

template std::size_t scan_states_bytes<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_states_bytes<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_states_bytes<bf16>(const CudaQueue&, const ScanShape&);

}  // namespace fm
