// Forward for small batches: a lane owns 2 states of one channel, so that a warp carries the 64
// states of one channel and 512 channels of one image fill an H100's 528 schedulers.
//
// The recurrence itself is one multiply-add a step; everything else of 7 steps runs ahead of it. A
// warp's steps of y are summed over lanes through shared memory once a group of steps, a lane a
// step. Against the wide tile: twice the shared memory traffic an element, which bounds it, but no
// second scan, which is what chunks cost.
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
  static constexpr int row = kWarp + 4;  // 16-byte pieces of 8 neighbouring rows: 8 banks groups
  T matrices[2][Cut::steps][2][kStates];
  struct Warp {
    float y[Cut::steps][row];
    float2 delta[Cut::steps][Cut::warp_channels];  // delta, delta u
  } warps[Cut::warps];
};

template <class T, int kStates>
__global__ void __launch_bounds__(NarrowTile<kStates>::threads)
    narrow_kernel(const ForwardArgs<T> args) {
  using Cut = NarrowTile<kStates>;
  constexpr int own_states = Cut::per_thread, item_steps = kWarp / Cut::warp_channels;
  __shared__ NarrowShared<T, kStates> shared;
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
    for (int i = threadIdx.x; i < Cut::steps * 2 * pieces; i += Cut::threads) {
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
        for (int e = 0; e < piece; ++e) to[e] = e < count ? from[e] : narrow<T>(0.0f);
      }
    }
  };
  struct Item {
    float u, dt, z;
  };
  Item next[Cut::items];
  const auto fetch_items = [&](int step) {
#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      const int t = lane / Cut::warp_channels + i * item_steps;
      if (t >= Cut::steps || step + t >= s.length || !item_real) continue;
      const int row = first_row + way * (step + t);
      next[i] = {widen(*args.rows[kU].at(row, base + item_channel)),
                 widen(*args.rows[kDt].at(row, base + item_channel)),
                 widen(*args.rows[kZ].at(row, base + item_channel))};
    }
  };
  fetch_matrices(0, 0);
  fetch_items(0);

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
  T* saved = static_cast<T*>(args.p.states);
  if (saved)
    saved += (part.image_direction * ceil_div(s.length, kBlockSteps) * per_direction + channel) *
                 kStates +
             state;

  for (int step = 0, buffer = 0; step < s.length; step += Cut::steps, buffer ^= 1) {
    Item now[Cut::items];
#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      const int t = lane / Cut::warp_channels + i * item_steps;
      now[i] = next[i];
      if (t >= Cut::steps) continue;
      float2 delta = {};
      if (step + t < s.length && item_real) {
        delta.x = softplus(now[i].dt + bias);
        delta.y = delta.x * now[i].u;
      }
      mine.delta[t][lane % Cut::warp_channels] = delta;
    }
    copies_arrived();
    __syncthreads();  // B and C of this group; and all warps have left the other buffer
    if (step + Cut::steps < s.length) {
      fetch_matrices(buffer ^ 1, step + Cut::steps);
      fetch_items(step + Cut::steps);
    }

#pragma unroll 1
    for (int block = 0; block < Cut::steps && step + block < s.length; block += kBlockSteps) {
      if (saved) {
        if (real && step + block > 0) save_state(saved, h);
        saved += static_cast<std::int64_t>(per_direction) * kStates;
      }
#pragma unroll
      for (int t = block; t < block + kBlockSteps; ++t) {
        const float2 delta = mine.delta[t][lane / Cut::lanes];
        float b[own_states], c[own_states], y = 0;
        load_wide(b, &shared.matrices[buffer][t][0][state]);
        load_wide(c, &shared.matrices[buffer][t][1][state]);
#pragma unroll
        for (int i = 0; i < own_states; ++i) {
          h[i] = fmaf(exp2_approx(delta.x * rate[i]), h[i], delta.y * b[i]);
          y = fmaf(c[i], h[i], y);
        }
        mine.y[t][lane] = y;
      }
    }
    __syncwarp();

#pragma unroll
    for (int i = 0; i < Cut::items; ++i) {
      const int t = lane / Cut::warp_channels + i * item_steps;
      if (t >= Cut::steps || step + t >= s.length || !item_real) continue;
      float sum[4] = {};
#pragma unroll
      for (int j = 0; j < Cut::lanes; j += 4) {
        float four[4];
        load_wide(four, &mine.y[t][lane % Cut::warp_channels * Cut::lanes + j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e] += four[e];
      }
      const float y = fmaf(skip, now[i].u, (sum[0] + sum[1]) + (sum[2] + sum[3]));
      const std::int64_t at = static_cast<std::int64_t>(first_row + way * (step + t)) * s.channels +
                              base + item_channel;
      args.p.o[at] = narrow<T>(y * now[i].z * sigmoid_approx(now[i].z));
      if (args.p.y) args.p.y[at] = narrow<T>(y);
    }
    __syncwarp();
  }
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
    launch(queue, "scan_forward", narrow_kernel<T, kStates>, dim3(static_cast<unsigned>(ctas)),
           Cut::threads, 0, args);
  });
}

template void forward_narrow(CudaQueue&, const ForwardArgs<float>&);
template void forward_narrow(CudaQueue&, const ForwardArgs<f16>&);
template void forward_narrow(CudaQueue&, const ForwardArgs<bf16>&);

}  // namespace fm::scan
