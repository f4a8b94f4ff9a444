// Forward: a CTA scans 128 channels of one image, direction and chunk with the states in registers.
//
// Per group of steps a warp turns its rows of u and dt into delta and delta u, walks the steps with
// 2 channels and 8 or 16 states a thread, and gates and stores its rows of y; the next group is on
// its way. An element costs one exponential and four multiply-adds, and the special-function unit,
// which takes one warp in 8 cycles, is what binds, if some warps walk at any time. So B and C are
// converted a group ahead, and a warp waits only for one that is a whole group behind: in step by a
// barrier a group, all would stage at once, and store states at once (H100, paper's shape: 639 us
// with states, 556 without; so, 576 and 562).
#include "kernels/selective_scan/selective_scan_forward.cuh"
#include "kernels/selective_scan/selective_scan_stage.cuh"
#include "kernels/selective_scan/selective_scan_turns.cuh"

namespace fm {
namespace scan {
namespace {

template <class T, int kStates>
struct alignas(16) ForwardShared {
  using Cut = Tile<kStates>;
  // Groups of B and C: being walked, being converted, and one more for those behind. In float that
  // would pass 99 KB, with few states cost a CTA of the multiprocessor.
  static constexpr int slots = sizeof(T) == 2 && Cut::per_thread == 16 ? 3 : 2;
  struct Warp {
    ChannelStage<T, kStates, kForwardRows> rows;
    float2 delta[Cut::padded_steps][Cut::warp_channels];  // delta, delta u
    float y[Cut::padded_steps + 1][Cut::warp_channels];   // of step t in row t + 1
    float bias[Cut::warp_channels], skip[Cut::warp_channels];
    Projection<T, kStates> projection;
  };
  MatrixStage<T, kStates, 2, slots> matrices;
  Warp warps[Cut::warps];
  Turns<Cut::threads, slots == 3> turns;
};

// u and dt to delta and delta u. Branch-free, all rounds together: these are long chains.
template <bool kProjected, class T, int kStates>
__device__ __forceinline__ void widen_rows(typename ForwardShared<T, kStates>::Warp& mine,
                                           int buffer) {
  using Cut = Tile<kStates>;
  each_dt<kProjected, kStates>(mine, buffer, [&](int t, int c, const float(&dt)[Cut::piece]) {
    float u[Cut::piece], delta[Cut::piece];
    load_wide(u, &mine.rows.raw[buffer][kU][t][c]);
#pragma unroll
    for (int k = 0; k < Cut::piece; ++k) delta[k] = softplus<T>(dt[k]);
#pragma unroll
    for (int k = 0; k < Cut::piece; k += 2)
      *reinterpret_cast<float4*>(&mine.delta[t][c + k]) = {delta[k], delta[k] * u[k], delta[k + 1],
                                                           delta[k + 1] * u[k + 1]};
  });
}

// y, and o = y silu(z) or y again, of a group of steps to global memory.
template <bool kWide, class T, int kStates>
__device__ __forceinline__ void store_rows(const ForwardArgs<T>& args,
                                           const typename ForwardShared<T, kStates>::Warp& mine,
                                           int buffer, int row, int way, int count,
                                           const WarpChannels& channels) {
  using Cut = Tile<kStates>;
  const Pieces<kStates> own;
  const int channel_count = args.p.shape.channels;
  const std::int64_t first = static_cast<std::int64_t>(row + way * own.step) * channel_count +
                             channels.channel + own.channel;
  const int stride = way * Cut::row_lanes * channel_count;
  float skip[Cut::piece];
  load_wide(skip, &mine.skip[own.channel]);
#pragma unroll
  for (int i = 0; i < Cut::rounds; ++i) {
    const int t = own.step + i * Cut::row_lanes;
    float y[Cut::piece], o[Cut::piece], u[Cut::piece], z[Cut::piece];
    load_wide(y, &mine.y[t + 1][own.channel]);
    load_wide(u, &mine.rows.raw[buffer][kU][t][own.channel]);
#pragma unroll
    for (int k = 0; k < Cut::piece; ++k) o[k] = y[k] = fmaf(skip[k], u[k], y[k]);
    if (args.p.in.z) {
      load_wide(z, &mine.rows.raw[buffer][kZ][t][own.channel]);
#pragma unroll
      for (int k = 0; k < Cut::piece; ++k) o[k] = y[k] * z[k] * sigmoid_approx(z[k]);
    }
    const std::int64_t at = first + static_cast<std::int64_t>(i) * stride;
    const bool real = t < count && own.channel < channels.count;
    if constexpr (kWide) {
      if (real) store_narrow(args.p.o + at, o);
      if (real && args.p.y) store_narrow(args.p.y + at, y);
    } else {
#pragma unroll
      for (int k = 0; k < Cut::piece; ++k) {
        if (!real || own.channel + k >= channels.count) continue;
        args.p.o[at + k] = narrow<T>(o[k]);
        if (args.p.y) args.p.y[at + k] = narrow<T>(y[k]);
      }
    }
  }
}

// One channel's states of a lane; `to` is at its first run.
template <class T, int kStates>
__device__ __forceinline__ void save_states(T* to, const float (&h)[Tile<kStates>::per_thread]) {
  using Cut = Tile<kStates>;
  constexpr int piece = sizeof(T) == 4 ? 4 : Cut::run;
#pragma unroll
  for (int i = 0; i < Cut::per_thread; i += piece) {
    float states[piece];
#pragma unroll
    for (int e = 0; e < piece; ++e) states[e] = h[i + e];
    save_state(to + i / Cut::run * Cut::lanes * Cut::run + i % Cut::run, states);
  }
}

// Sums two channels' values over the lanes that share them, a level of the exchange at a time; of
// the first two lanes each ends with one channel (see Seat).
template <int kLanes>
struct LaneSum {
  float sum, other;

  __device__ __forceinline__ explicit LaneSum(const float (&y)[2])
      : sum(y[0]), other(kLanes > 1 ? __shfl_xor_sync(0xffffffffu, y[1], 1) : y[1]) {}
  // Level 0 first; the last one stores, those beyond it do nothing.
  __device__ __forceinline__ void add(int level, float* to, int lane) {
    const int lanes = 2 << level;
    if (kLanes == 1 && level == 0) *reinterpret_cast<float2*>(to) = {sum, other};
    if (lanes > kLanes) return;
    sum += other;
    if (lanes < kLanes) other = __shfl_xor_sync(0xffffffffu, sum, lanes);
    else if (lane < 2) *to = sum;
  }
};

template <class T, int kStates>
__global__ void __launch_bounds__(Tile<kStates>::threads, Tile<kStates>::blocks_per_sm)
    forward_kernel(const ForwardArgs<T> args) {
  using Cut = Tile<kStates>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, kStates>*>(memory);
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions;
  const Part part = part_of(s, args.chunks, kTileChannels);
  const Seat<kStates> seat;
  const WarpChannels own(s, part, seat.warp, Cut::warp_channels);
  auto& mine = shared.warps[seat.warp];
  const int end_step = min(part.end_block * kBlockSteps, s.length);
  const int way = part.direction ? -1 : 1;
  const int rank = kProjects<T, kStates> ? args.rank : 0;
  const int first_row = part.image * s.length + (part.direction ? s.length - 1 : 0);

  const auto steps_from = [&](int step) { return min(Cut::steps, end_step - step); };
  const auto fetch_matrices = [&](int step) {
    const int row = first_row + way * step, bc_column = way < 0 ? args.bc_direction : 0;
    shared.matrices.copy(steps_from(step), s.state, args.wide_states, [&](int t, int m) {
      return (m ? args.c : args.b).at(row + way * t, bc_column);
    });
  };
  const auto fetch_rows = [&](int buffer, int step) {
    const int row = first_row + way * step, bc_column = way < 0 ? args.bc_direction : 0;
    const int count = steps_from(step);
    if (rank)
      mine.rows.copy_low(buffer, count, rank, args.wide_low,
                         [&](int t) { return args.low.at(row + way * t, bc_column); });
    mine.rows.copy(buffer, rank ? kU : kDt, args.p.in.z ? kForwardRows : kZ, count, own.count,
                   args.wide_channels,
                   [&](int r, int t) { return args.rows[r].at(row + way * t, own.channel); });
  };
  int step = part.first_block * kBlockSteps;
  if (step >= end_step) return;
  fetch_matrices(step);
  fetch_rows(0, step);
  shared.turns.init();
  for (int c = threadIdx.x % kWarp; c < own.count; c += kWarp) {
    mine.bias[c] = args.p.in.dt_bias[own.channel + c];
    mine.skip[c] = args.p.in.d[own.channel + c];
  }
  if constexpr (kProjects<T, kStates>)
    if (rank)
      mine.projection.load(args.p.in.dt_weight + static_cast<std::int64_t>(own.channel) * rank,
                           own.count, rank);
  float h[2][Cut::per_thread], rate[2][Cut::per_thread];
  load_rates<T, kStates, 0>(rate,
                            args.p.in.a_log + static_cast<std::int64_t>(own.channel) * s.state,
                            seat, own.count, s.state);
  const std::int64_t start_row =
      (part.image_direction * args.chunks + part.chunk) * per_direction + own.first;
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int i = 0; i < Cut::per_thread; ++i)
      h[k][i] = args.start && seat.channel[k] < own.count
                    ? args.start[(start_row + seat.channel[k]) * kStates + seat.state(i)]
                    : 0.0f;
  T* saved = static_cast<T*>(args.p.states);
  if (saved)
    saved += ((part.image_direction * ceil_div(s.length, kSaveSteps) +
               part.first_block / kBlocksPerSave) *
                  per_direction +
              own.first + seat.channel[0]) *
                 kStates +
             seat.lane * Cut::run;

  __syncthreads();
  copies_arrived();
  shared.matrices.convert(0, steps_from(step), s.state);
  shared.turns.done();
  if (step + Cut::steps < end_step) fetch_matrices(step + Cut::steps);
  int slot = 0;
  for (int buffer = 0; step < end_step; buffer ^= 1) {
    const int count = steps_from(step), next = step + Cut::steps;
    const int next_slot = slot + 1 < shared.slots ? slot + 1 : 0;
    copies_arrived();
    __syncwarp();
    // All have converted their part of this group, and so have left the group before the last.
    shared.turns.wait(buffer);
    shared.matrices.convert(next_slot, steps_from(next), s.state);
    shared.turns.done();
    if (kProjects<T, kStates> && rank) widen_rows<kProjects<T, kStates>, T, kStates>(mine, buffer);
    else widen_rows<false, T, kStates>(mine, buffer);
    __syncwarp();
    if (next < end_step) fetch_rows(buffer ^ 1, next);
    if (next + Cut::steps < end_step) fetch_matrices(next + Cut::steps);

    constexpr int run = kSaveSteps < Cut::steps ? kSaveSteps : Cut::steps;
    const float2* delta_at = mine.delta[0];
    const float* matrix_at = shared.matrices.at[slot][0][0] + seat.lane * Cut::run;
    float* y_at = mine.y[0] + seat.channel[0];
    // A step's y is summed over lanes during the step after it, a level of the exchange every four
    // states, which hides its latency.
    float y[2] = {0, 0};
    const auto take_step = [&] {
      const float2 delta[2] = {delta_at[seat.channel[0]], delta_at[seat.channel[1]]};
      LaneSum<Cut::lanes> sum(y);
      y[0] = y[1] = 0;
#pragma unroll
      for (int j = 0; j < Cut::per_thread; j += 4) {
        float b[4], c[4];
        const int n = j / Cut::run * Cut::lanes * Cut::run + j % Cut::run;
        load_wide(b, matrix_at + n);
        load_wide(c, matrix_at + n + kStates);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float& state = h[k][j + e];
            state = fmaf(exp2_approx(delta[k].x * rate[k][j + e]), state, delta[k].y * b[e]);
            y[k] = fmaf(c[e], state, y[k]);
          }
        sum.add(j / 4, y_at, seat.lane);
      }
      y_at += Cut::warp_channels;
      delta_at += Cut::warp_channels;
      matrix_at += 2 * kStates;
    };
#pragma unroll 1
    for (int begin = 0; begin < count; begin += run) {
      if (saved && (run == kSaveSteps || step % kSaveSteps == 0)) {
        if (step + begin > 0) {
#pragma unroll
          for (int k = 0; k < 2; ++k)
            if (seat.channel[k] < own.count)
              save_states<T, kStates>(saved + (seat.channel[k] - seat.channel[0]) * kStates, h[k]);
        }
        saved += static_cast<std::int64_t>(per_direction) * kStates;
      }
#pragma unroll 1
      for (int t = min(count - begin, run); t > 0; --t) take_step();
    }
    LaneSum<Cut::lanes> last(y);
#pragma unroll
    for (int level = 0; level < Cut::per_thread / 4; ++level) last.add(level, y_at, seat.lane);
    __syncwarp();
    const int row = first_row + way * step;
    if (args.wide_out) store_rows<true, T, kStates>(args, mine, buffer, row, way, count, own);
    else store_rows<false, T, kStates>(args, mine, buffer, row, way, count, own);
    __syncwarp();
    step = next;
    slot = next_slot;
  }
}

}  // namespace
}  // namespace scan

namespace {

// One narrow pass, where the wide tile would fill at most a quarter of the machine: for 512
// channels and 64 states up to batch 8 (H100, 196 steps: 49 us against 78, and at batch 16 94
// against 78). Where chunks of wide tiles can fill it, only as long as the narrow pass is the
// shorter way: on an H100 to about 750 steps of one image (14 us at 196, 40 against 49 at 512), 350
// of eight.
bool is_narrow(const CudaQueue& queue, const ScanShape& s) {
  if (s.chunks > 1) return false;
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions *
                            ceil_div(s.channels / s.directions, scan::kTileChannels);
  if (ctas * 4 > queue.limits.multiprocessors) return false;
  return scan_chunks(queue, s) == 1 || s.length <= 750 - 12 * ctas;
}

}  // namespace

template <class T>
std::size_t scan_forward_workspace(const CudaQueue& queue, const ScanShape& s) {
  scan::Carve workspace;
  if (!is_narrow(queue, s)) scan::Carries::carve(workspace, s, scan_chunks(queue, s));
  return workspace.bytes();
}

// Where it is the shorter way (H100): in the narrow tile the projection costs nothing, in the wide
// one 20 us of the 33 that a product takes at the paper's shape; a chunked pass would do it twice.
template <class T>
bool scan_projects_dt(const CudaQueue& queue, const ScanShape& s, int rank) {
  if (sizeof(T) != 2 || rank < 1 || rank > scan::kLowRank) return false;
  if (is_narrow(queue, s)) return true;
  return s.state > 16 && scan_chunks(queue, s) == 1;
}

template <class T>
void scan_forward(CudaQueue& queue, const ScanForward<T>& p) {
  using namespace scan;
  const ScanShape& s = p.shape;
  const int chunks = scan_chunks(queue, s), per_direction = s.channels / s.directions;
  scan_check_gate(p.in.z, p.y);
  FM_CHECK(static_cast<std::int64_t>(s.batch) * s.length <= kMaxGrid,
           "[selective_scan] at most 2^31 - 1 tokens, got ", s.batch, " times ", s.length);
  ForwardArgs<T> args{.p = p, .chunks = chunks};
  args.rows[kU] = Lines<T>::of(p.in.u, p.in.u_stride);
  args.rank = p.in.dt ? 0 : p.in.rank;
  FM_CHECK(p.in.dt || scan_projects_dt<T>(queue, s, args.rank), "[selective_scan] dt of rank ",
           args.rank, " must be projected before the scan here");
  if (p.in.dt) args.rows[kDt] = Lines<T>::of(p.in.dt, p.in.dt_stride);
  args.low = Lines<T>::of(p.in.dt_low, p.in.bc_stride);
  args.wide_low = wide_low(p.in);
  args.rows[kZ] = Lines<T>::of(p.in.z, p.in.z_stride);
  args.b = Lines<T>::of(p.in.b, p.in.bc_stride);
  args.c = Lines<T>::of(p.in.c, p.in.bc_stride);
  args.bc_direction = static_cast<int>(p.in.bc_direction);
  args.wide_channels = wide_channels(s, p.in);
  args.wide_states = wide_states(s, p.in);
  args.wide_out = in_pieces(p.o, s.channels, per_direction) && in_pieces(p.y);
  if (is_narrow(queue, s)) return forward_narrow(queue, args);

  Carve workspace(p.workspace);
  const Carries carries = Carries::carve(workspace, s, chunks);
  if (chunks > 1) carry_chunks<T>(queue, s, p.in, nullptr, chunks, carries);
  args.start = carries.state;
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions * chunks *
                            ceil_div(per_direction, kTileChannels);
  FM_CHECK(ctas <= kMaxGrid, "[selective_scan] at most 2^31 - 1 CTAs, got ", ctas);
  with_padded_state(s.state, [&]<int kStates>() {
    static_assert(sizeof(ForwardShared<T, kStates>) <= 99 * 1024);
    launch(queue, "scan_forward", forward_kernel<T, kStates>, dim3(static_cast<unsigned>(ctas)),
           Tile<kStates>::threads, sizeof(ForwardShared<T, kStates>), args);
  });
}

template std::size_t scan_forward_workspace<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<bf16>(const CudaQueue&, const ScanShape&);
template bool scan_projects_dt<float>(const CudaQueue&, const ScanShape&, int);
template bool scan_projects_dt<f16>(const CudaQueue&, const ScanShape&, int);
template bool scan_projects_dt<bf16>(const CudaQueue&, const ScanShape&, int);
template void scan_forward(CudaQueue&, const ScanForward<float>&);
template void scan_forward(CudaQueue&, const ScanForward<f16>&);
template void scan_forward(CudaQueue&, const ScanForward<bf16>&);

}  // namespace fm
