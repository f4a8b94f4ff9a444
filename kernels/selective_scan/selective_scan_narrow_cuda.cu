// Forward for small batches: a lane owns 2 states of one channel, so that a warp carries the 64
// states of one channel and the 512 channels of one image fill an H100's 528 schedulers.
//
// A scheduler then has one warp and nothing hides a latency but the warp's own independent work.
// The recurrence is one multiply-add a step, the rest of a step runs ahead of it; and the body of a
// group of steps is one basic block that also turns the next group's dt and u into delta and
// delta u and finishes the previous group's y: sums over lanes through shared memory, a lane a
// step.
#include "kernels/selective_scan/selective_scan_forward.cuh"

namespace fm::scan {
namespace {

template <int kStates>
struct NarrowTile {
  static constexpr int per_thread = kStates > 64 ? 4 : 2;
  static constexpr int lanes = kStates / per_thread;
  static constexpr int warp_channels = kWarp / lanes;
  static constexpr int warps = 4;
  static constexpr int threads = warps * kWarp;
  static constexpr int channels = warps * warp_channels;
  // Staged at a time: near a lane for each step and channel.
  static constexpr int steps = (kStates == 128 ? 2 : std::max(4 / warp_channels, 1)) * kBlockSteps;
  static constexpr int items = ceil_div(steps * warp_channels, kWarp);
};

template <class T, int kStates>
struct alignas(16) NarrowShared {
  using Cut = NarrowTile<kStates>;
  static constexpr int row = kWarp + 4;  // 16-byte pieces of 8 neighbouring rows: 8 bank groups
  T matrices[2][Cut::steps][2][kStates];
  struct Warp {
    float y[2][Cut::steps][row];
    float2 delta[2][Cut::steps][Cut::warp_channels];  // delta, delta u
  } warps[Cut::warps];
};

// Where dt is projected, the rows of dt_low of two groups follow.
template <class T, int kStates>
using NarrowLow = T[2][NarrowTile<kStates>::steps][kLowRank];

// What a lane needs of a block of steps.
template <class T, int kCount>
struct Block {
  float2 delta[kBlockSteps];
  Vec<T, kCount> b[kBlockSteps], c[kBlockSteps];
};

// kProjected: dt comes as its factors (16 bits); an item is one sum of kLowRank products.
template <bool kProjected, class T, int kStates>
__global__ void __launch_bounds__(NarrowTile<kStates>::threads, 4)
    narrow_kernel(Deferred<ForwardArgs<T>> deferred) {
  const ForwardArgs<T>& args = deferred.wait();
  using Cut = NarrowTile<kStates>;
  constexpr int own_states = Cut::per_thread, item_steps = kWarp / Cut::warp_channels;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<NarrowShared<T, kStates>*>(memory);
  auto& low_rows = *reinterpret_cast<NarrowLow<T, kStates>*>(&shared + 1);
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions;
  const Part part = part_of(s, 1, Cut::channels);
  const int way = part.direction ? -1 : 1;
  const int first_row = part.image * s.length + (part.direction ? s.length - 1 : 0);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto& mine = shared.warps[warp];
  // The lane's channel in the scan, and the one whose rows it reads and writes: its items are the
  // steps lane / warp_channels + i item_steps of that one.
  const int first = part.first + warp * Cut::warp_channels;
  const int channel = first + lane / Cut::lanes;
  const int item_channel = first + lane % Cut::warp_channels;
  const bool real = channel < per_direction, item_real = item_channel < per_direction;
  const int base = part.direction * per_direction;

  const auto fetch_matrices = [&](int buffer, int step) {
    constexpr int piece = 16 / sizeof(T), pieces = kStates / piece;
    constexpr int all = Cut::steps * 2 * pieces;
#pragma unroll
    for (int round = 0; round < ceil_div(all, Cut::threads); ++round) {
      const int i = round * Cut::threads + threadIdx.x;
      if (i >= all) continue;
      const int t = i / (2 * pieces), m = i / pieces % 2, n = i % pieces * piece;
      T* to = &shared.matrices[buffer][t][m][n];
      // Steps beyond the last have a delta of zero: with a B of zero they leave the state alone.
      const int count = step + t < s.length ? min(max(s.state - n, 0), piece) : 0;
      const T* from = (m ? args.c : args.b)
                          .at(first_row + way * (step + t), part.direction * args.bc_direction) +
                      n;
      if (args.wide_states && count > 0) {
        copy_async<16>(to, from);
      } else {
#pragma unroll 1
        for (int e = 0; e < piece; ++e) to[e] = e < count ? from[e] : narrow<T>(0.0f);
      }
    }
  };
  // A group earlier than the matrices: they are needed for its delta.
  const auto fetch_low = [&](int buffer, int step) {
    const int t = threadIdx.x;
    if (t >= Cut::steps || step + t >= s.length) return;
    T* to = low_rows[buffer][t];
    const T* from = args.low.at(first_row + way * (step + t), part.direction * args.bc_direction);
    if (args.wide_low) {
      copy_async<16>(to, from);
    } else {
#pragma unroll 1
      for (int r = 0; r < kLowRank; ++r) to[r] = r < args.rank ? from[r] : narrow<T>(0.0f);
    }
  };
  // Three groups on their way: the next one's rows, this one's, and the previous one's.
  struct Items {
    T u[Cut::items], dt[Cut::items], z[Cut::items];
  };
  const auto is_item = [&](int i, int step) {
    const int t = lane / Cut::warp_channels + i * item_steps;
    return t < Cut::steps && step + t < s.length && step + t >= 0 && item_real;
  };
  const auto fetch_items = [&](Items& to, int step) {
#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      if (!is_item(i, step)) continue;
      const int row = first_row + way * (step + lane / Cut::warp_channels + i * item_steps);
      to.u[i] = *args.rows[kU].at(row, base + item_channel);
      if constexpr (!kProjected) to.dt[i] = *args.rows[kDt].at(row, base + item_channel);
      if (args.p.in.z) to.z[i] = *args.rows[kZ].at(row, base + item_channel);
    }
  };
  Items previous = {}, now = {}, next = {};
  fetch_matrices(0, 0);
  if constexpr (kProjected) {
    fetch_low(0, 0);
    fetch_low(1, Cut::steps);
  }
  fetch_items(now, 0);
  fetch_items(next, Cut::steps);

  const int state = lane % Cut::lanes * own_states;
  float h[own_states] = {}, rate[own_states];
#pragma unroll
  for (int i = 0; i < own_states; ++i)
    rate[i] =
        real && state + i < s.state
            ? decay_rate(
                  args.p.in.a_log[static_cast<std::int64_t>(base + channel) * s.state + state + i])
            : 0.0f;
  const float bias = item_real ? args.p.in.dt_bias[base + item_channel] : 0.0f;
  const float skip = item_real ? args.p.in.d[base + item_channel] : 0.0f;
  float weight[kLowRank];  // of dt's projection
  if constexpr (kProjected) {
    const T* from =
        args.p.in.dt_weight + static_cast<std::int64_t>(base + item_channel) * args.rank;
#pragma unroll
    for (int r = 0; r < kLowRank; ++r)
      weight[r] = item_real && r < args.rank ? widen(from[r]) : 0.0f;
  }
  T* saved = static_cast<T*>(args.p.states);
  if (saved)
    saved += (part.image_direction * ceil_div(s.length, kSaveSteps) * per_direction + channel) *
                 kStates +
             state;

  const auto widen_items = [&](const Items& items, int buffer, int step) {
#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      const int t = lane / Cut::warp_channels + i * item_steps;
      float dt = bias;
      if constexpr (kProjected) {
        float low[kLowRank];
        load_wide(low, low_rows[buffer][min(t, Cut::steps - 1)]);
#pragma unroll
        for (int r = 0; r < kLowRank; ++r) dt = fmaf(low[r], weight[r], dt);
      } else {
        dt += widen(items.dt[i]);
      }
      const float delta = softplus(dt);
      const bool inside = is_item(i, step);
      if (t < Cut::steps)
        mine.delta[buffer][t][lane % Cut::warp_channels] = {
            inside ? delta : 0.0f, inside ? delta * widen(items.u[i]) : 0.0f};
    }
  };
  const auto finish_items = [&](const Items& items, int buffer, int step) {
#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      const int t = lane / Cut::warp_channels + i * item_steps;
      float sum[4] = {};
#pragma unroll
      for (int j = 0; j < Cut::lanes; j += 4) {
        float four[4];
        load_wide(
            four,
            &mine.y[buffer][min(t, Cut::steps - 1)][lane % Cut::warp_channels * Cut::lanes + j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e] += four[e];
      }
      const float z = widen(items.z[i]);
      const float y = fmaf(skip, widen(items.u[i]), (sum[0] + sum[1]) + (sum[2] + sum[3]));
      const float o = args.p.in.z ? y * z * sigmoid_approx(z) : y;
      const std::int64_t at = static_cast<std::int64_t>(first_row + way * (step + t)) * s.channels +
                              base + item_channel;
      const bool inside = is_item(i, step);
      if (inside) args.p.o[at] = narrow<T>(o);
      if (inside && args.p.y) args.p.y[at] = narrow<T>(y);
    }
  };

  if constexpr (kProjected) {
    copies_arrived();
    __syncthreads();
  }
  widen_items(now, 0, 0);
  int step = 0, buffer = 0;
#pragma unroll 1
  for (; step < s.length; step += Cut::steps, buffer ^= 1) {
    copies_arrived();
    __syncthreads();  // B and C of this group; and all warps have left the other buffer
    fetch_matrices(buffer ^ 1, step + Cut::steps);
    if constexpr (kProjected) fetch_low(buffer, step + 2 * Cut::steps);
    finish_items(previous, buffer ^ 1, step - Cut::steps);
    widen_items(next, buffer ^ 1, step + Cut::steps);
    previous = now;
    now = next;
    fetch_items(next, step + 2 * Cut::steps);

    Block<T, own_states> block;
    const auto load_block = [&](int first_step) {
#pragma unroll
      for (int t = 0; t < kBlockSteps; ++t) {
        block.delta[t] = mine.delta[buffer][first_step + t][lane / Cut::lanes];
        block.b[t] = *reinterpret_cast<const Vec<T, own_states>*>(
            &shared.matrices[buffer][first_step + t][0][state]);
        block.c[t] = *reinterpret_cast<const Vec<T, own_states>*>(
            &shared.matrices[buffer][first_step + t][1][state]);
      }
    };
    load_block(0);
#pragma unroll
    for (int begin = 0; begin < Cut::steps; begin += kBlockSteps) {
      if (saved && (step + begin) % kSaveSteps == 0) {
        if (real && step + begin > 0 && step + begin < s.length) save_state(saved, h);
        saved += static_cast<std::int64_t>(per_direction) * kStates;
      }
      float y[kBlockSteps];
#pragma unroll
      for (int t = 0; t < kBlockSteps; ++t) {
        y[t] = 0;
#pragma unroll
        for (int i = 0; i < own_states; ++i) {
          h[i] = fmaf(exp2_approx(block.delta[t].x * rate[i]), h[i],
                      block.delta[t].y * widen(block.b[t].at[i]));
          y[t] = fmaf(widen(block.c[t].at[i]), h[i], y[t]);
        }
      }
      // The next loads before these stores: the compiler must not exchange them.
      if (begin + kBlockSteps < Cut::steps) load_block(begin + kBlockSteps);
#pragma unroll
      for (int t = 0; t < kBlockSteps; ++t) mine.y[buffer][begin + t][lane] = y[t];
    }
  }
  __syncwarp();
  finish_items(previous, buffer ^ 1, step - Cut::steps);
}

}  // namespace

template <class T>
void forward_narrow(CudaQueue& queue, const ForwardArgs<T>& args) {
  const ScanShape& s = args.p.shape;
  with_padded_state(s.state, [&]<int kStates>() {
    using Cut = NarrowTile<kStates>;
    const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions *
                              ceil_div(s.channels / s.directions, Cut::channels);
    FM_CHECK(ctas <= kMaxGrid, "[selective_scan] at most 2^31 - 1 CTAs, got ", ctas);
    const auto run = [&]<bool kProjected>() {
      launch(queue, "scan_forward", narrow_kernel<kProjected, T, kStates>,
             dim3(static_cast<unsigned>(ctas)), Cut::threads,
             sizeof(NarrowShared<T, kStates>) + (kProjected ? sizeof(NarrowLow<T, kStates>) : 0),
             args);
    };
    if constexpr (sizeof(T) == 2)
      if (args.rank) return run.template operator()<true>();
    run.template operator()<false>();
  });
}

template void forward_narrow(CudaQueue&, const ForwardArgs<float>&);
template void forward_narrow(CudaQueue&, const ForwardArgs<f16>&);
template void forward_narrow(CudaQueue&, const ForwardArgs<bf16>&);

}  // namespace fm::scan
