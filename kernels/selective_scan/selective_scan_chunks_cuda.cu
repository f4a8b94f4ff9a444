// The chunked path: how many chunks, and the pass that finds what every chunk starts with.
//
// h_end = P h_start + S with P = exp(A sum of delta) and S the end state scanned from zero; q, the
// gradient of the state, obeys the same recurrence from the chunk's end to its start. So: scan
// every chunk from zero for S, carry over the chunks (one exp a chunk and state, not a step), and
// let the normal kernels start from the carried values.
#include "kernels/selective_scan/selective_scan_stage.cuh"

namespace fm {
namespace scan {
namespace {

constexpr int kMinChunkSteps = 28;  // below that the second scan is not worth it
constexpr int kCarryThreads = 128;

template <class T>
struct LocalArgs {
  ScanShape shape;
  int chunks;
  Carries carries;
  const float *a_log, *dt_bias;
  Lines<T> rows[3] = {}, matrix = {};  // dt and u, and B; backward: dt, d_o and z, and C
  int row_count = 2, bc_direction = 0;
  bool wide_channels = false, wide_states = false;
};

enum LocalRow { kDt, kInput, kGate };

template <bool kBackward, class T, int kStates>
struct alignas(16) LocalShared {
  using Cut = Tile<kStates>;
  struct Warp {
    ChannelStage<T, kStates, kBackward ? 3 : 2> rows;
    float2 delta[Cut::padded_steps][Cut::warp_channels];  // delta, and delta u; backward: dy
    float bias[Cut::warp_channels];
  };
  MatrixStage<T, kStates, 1> matrix;  // B; backward: C
  Warp warps[Cut::warps];
};

// dt and the input to delta and what enters the recurrence. Branch-free, all rounds together: these
// are long chains.
template <bool kBackward, class T, int kStates>
__device__ __forceinline__ void widen_rows(typename LocalShared<kBackward, T, kStates>::Warp& mine,
                                           int buffer, bool gated) {
  using Cut = Tile<kStates>;
  const Pieces<kStates> own;
  const auto& raw = mine.rows.raw[buffer];
  float bias[Cut::piece];
  load_wide(bias, &mine.bias[own.channel]);
#pragma unroll
  for (int i = 0; i < Cut::rounds; ++i) {
    const int t = own.step + i * Cut::row_lanes;
    float dt[Cut::piece], input[Cut::piece], delta[Cut::piece], term[Cut::piece];
    load_wide(dt, &raw[kDt][t][own.channel]);
    load_wide(input, &raw[kInput][t][own.channel]);
#pragma unroll
    for (int k = 0; k < Cut::piece; ++k) {
      delta[k] = softplus(dt[k] + bias[k]);
      term[k] = kBackward ? input[k] : delta[k] * input[k];
    }
    if constexpr (kBackward) {
      float z[Cut::piece];
      load_wide(z, &raw[kGate][t][own.channel]);
#pragma unroll
      for (int k = 0; k < Cut::piece; ++k)
        term[k] = gated ? term[k] * z[k] * sigmoid_approx(z[k]) : term[k];
    }
#pragma unroll
    for (int k = 0; k < Cut::piece; k += 2)
      *reinterpret_cast<float4*>(&mine.delta[t][own.channel + k]) = {delta[k], term[k],
                                                                     delta[k + 1], term[k + 1]};
  }
}

// One chunk from zero: h = a h + delta u B upwards, or q = a (q + dy C) downwards.
template <bool kBackward, class T, int kStates>
__global__ void __launch_bounds__(Tile<kStates>::threads, Tile<kStates>::blocks_per_sm)
    local_kernel(const LocalArgs<T> args) {
  using Cut = Tile<kStates>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LocalShared<kBackward, T, kStates>*>(memory);
  const ScanShape& s = args.shape;
  const Part part = part_of(s, args.chunks, kTileChannels);
  const int way = part.direction ? -1 : 1;
  const int first_row = part.image * s.length + (part.direction ? s.length - 1 : 0);
  const int first_step = part.first_block * kBlockSteps;
  const int end_step = min(part.end_block * kBlockSteps, s.length);
  const Seat<kStates> seat;
  const WarpChannels own(s, part, seat.warp, Cut::warp_channels);
  auto& mine = shared.warps[seat.warp];

  const auto fetch = [&](int buffer, int step) {
    const int count = min(Cut::steps, end_step - step), row = first_row + way * step;
    const int bc_column = part.direction * args.bc_direction;
    shared.matrix.copy(count, s.state, args.wide_states,
                       [&](int t, int) { return args.matrix.at(row + way * t, bc_column); });
    mine.rows.copy(buffer, 0, args.row_count, count, own.count, args.wide_channels,
                   [&](int r, int t) { return args.rows[r].at(row + way * t, own.channel); });
  };
  const int groups = ceil_div(end_step - first_step, Cut::steps);
  const auto step_of = [&](int group) {
    return first_step + (kBackward ? groups - 1 - group : group) * Cut::steps;
  };
  fetch(0, step_of(0));

  for (int c = threadIdx.x % kWarp; c < own.count; c += kWarp)
    mine.bias[c] = args.dt_bias[own.channel + c];
  float h[2][Cut::per_thread] = {}, rate[2][Cut::per_thread], delta_sum[2] = {0, 0};
  load_rates<T, kStates, Cut::chunk_polynomials>(
      rate, args.a_log + static_cast<std::int64_t>(own.channel) * s.state, seat, own.count,
      s.state);

  for (int group = 0, buffer = 0; group < groups; ++group, buffer ^= 1) {
    const int count = min(Cut::steps, end_step - step_of(group));
    copies_arrived();
    __syncwarp();
    shared.matrix.convert(buffer, count, s.state);
    widen_rows<kBackward, T, kStates>(mine, buffer, args.row_count > kGate);
    __syncthreads();  // the matrix of this group; and all warps have left the other buffer
    if (group + 1 < groups) fetch(buffer ^ 1, step_of(group + 1));

    constexpr int next = kBackward ? -1 : 1;
    const int begin = kBackward ? count - 1 : 0;
    const float2* delta_at = mine.delta[begin];
    const float* matrix_at = shared.matrix.at[buffer][begin][0] + seat.lane * Cut::run;
#pragma unroll 1
    for (int left = count; left > 0; --left) {
      const float2 delta[2] = {delta_at[seat.channel[0]], delta_at[seat.channel[1]]};
      delta_sum[0] += delta[0].x;
      delta_sum[1] += delta[1].x;
#pragma unroll
      for (int j = 0; j < Cut::per_thread; j += 4) {
        float m[4];
        load_wide(m, matrix_at + j / Cut::run * Cut::lanes * Cut::run + j % Cut::run);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float& state = h[k][j + e];
            const float decay =
                decay_of<T, Cut::chunk_polynomials>(j + e, delta[k].x, rate[k][j + e]);
            if constexpr (kBackward) state = decay * fmaf(delta[k].y, m[e], state);
            else state = fmaf(decay, state, delta[k].y * m[e]);
          }
      }
      delta_at += next * Cut::warp_channels;
      matrix_at += next * kStates;
    }
    __syncwarp();
  }

  const std::int64_t row =
      (part.image_direction * args.chunks + part.chunk) * (s.channels / s.directions) + own.first;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (seat.channel[k] >= own.count) continue;
    const std::int64_t at = row + seat.channel[k];
    if (seat.lane == 0) args.carries.delta[at] = delta_sum[k];
#pragma unroll
    for (int j = 0; j < Cut::per_thread; j += 4)
      store_narrow(args.carries.state + at * kStates + seat.state(j),
                   {h[k][j], h[k][j + 1], h[k][j + 2], h[k][j + 3]});
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
  // Some chunks at a time: their loads are in flight together.
  constexpr int kTogether = 8;
  float carried = 0;
  for (int first = 0; first < chunks; first += kTogether) {
    float local[kTogether], decay[kTogether];
    std::int64_t at[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int index = min(first + i, chunks - 1);
      const int chunk = backward ? chunks - 1 - index : index;
      at[i] = (image_direction * chunks + chunk) * per_direction + c;
      local[i] = carries.state[at[i] * states + n];
      decay[i] = exp2_approx(rate * carries.delta[at[i]]);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= chunks) break;
      carries.state[at[i] * states + n] = carried;
      carried = fmaf(decay[i], carried, local[i]);
    }
  }
}

template <bool kBackward, class T>
void launch_local(CudaQueue& queue, const LocalArgs<T>& args, unsigned ctas) {
  with_padded_state(args.shape.state, [&]<int kStates>() {
    launch(queue, "scan_local", local_kernel<kBackward, T, kStates>, dim3(ctas),
           Tile<kStates>::threads, sizeof(LocalShared<kBackward, T, kStates>), args);
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
  using Line = Lines<T>;
  LocalArgs<T> args{s, chunks, carries, in.a_log, in.dt_bias};
  args.rows[kDt] = Line::of(in.dt, in.dt_stride);
  args.rows[kInput] = d_o ? Line::of(d_o, s.channels) : Line::of(in.u, in.u_stride);
  if (d_o && in.z) {
    args.rows[kGate] = Line::of(in.z, in.z_stride);
    args.row_count = kGate + 1;
  }
  args.matrix = Line::of(d_o ? in.c : in.b, in.bc_stride);
  args.bc_direction = static_cast<int>(in.bc_direction);
  args.wide_channels =
      wide_channels(s, in) && in_pieces(d_o, s.channels, s.channels / s.directions);
  args.wide_states = wide_states(s, in);
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
  const int saves = ceil_div(s.length, scan::kSaveSteps);
  if (s.chunks > 0) return std::min(s.chunks, saves);
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions *
                            ceil_div(s.channels / s.directions, scan::kTileChannels);
  const std::int64_t filling = 2 * queue.limits.multiprocessors / ctas;
  const auto chunks = std::min<std::int64_t>(filling, s.length / scan::kMinChunkSteps);
  return chunks >= 3 ? static_cast<int>(chunks) : 1;
}

int scan_parting(const CudaQueue& queue, const ScanShape& s) {
  if (scan_chunks(queue, s) > 1) return 0;
  const int of_image = s.directions * ceil_div(s.channels / s.directions, scan::kTileChannels);
  int slots = queue.limits.multiprocessors;
  scan::with_padded_state(s.state,
                          [&]<int kStates>() { slots *= scan::Tile<kStates>::blocks_per_sm; });
  const std::int64_t waves = std::int64_t{s.batch} * of_image / slots;
  const int whole = static_cast<int>(waves * slots / of_image), rest = s.batch - whole;
  // The rest by the same tiles, and not so many that nothing is left idle.
  const bool pays = rest * of_image * 2 > slots && rest * of_image * 16 <= 15 * slots;
  return waves > 0 && pays ? whole : 0;
}

template <class T>
std::size_t scan_states_bytes(const CudaQueue&, const ScanShape& s) {
  scan::check_shape(s);
  return static_cast<std::size_t>(s.batch) * ceil_div(s.length, scan::kSaveSteps) * s.channels *
         scan::padded_state(s.state) * sizeof(T);
}

template std::size_t scan_states_bytes<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_states_bytes<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_states_bytes<bf16>(const CudaQueue&, const ScanShape&);

}  // namespace fm
