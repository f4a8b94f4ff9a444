// Forward: a CTA scans 128 channels of one image, direction and chunk with the states in registers.
//
// Per group of steps: the raw rows of the next group are on their way (cp.async, two buffers) while
// delta, delta u, B and C of this group become floats in shared memory; every thread then walks
// the steps with its 2 channels and 8 or 16 states; y of all channels is gated and stored in whole
// rows. An element costs one ex2 and four multiply-adds, so the special-function unit is the
// bound.
#include "kernels/selective_scan/selective_scan.cuh"

namespace fm {
namespace scan {
namespace {

template <class T>
struct ForwardArgs {
  ScanForward<T> p;
  int chunks;
  const float* start;  // states at chunk starts; null: zero
  bool wide_channels, wide_states, wide_out;
};

template <class T, int kStates>
struct alignas(16) ForwardShared {
  static constexpr int steps = Tile<kStates>::steps;
  struct Raw {
    T u[steps][kTileChannels], dt[steps][kTileChannels], z[steps][kTileChannels];
    T b[steps][kStates], c[steps][kStates];
  };
  alignas(16) Raw raw[2];
  alignas(16) float b[steps][kStates], c[steps][kStates];
  alignas(16) float2 delta[steps][kTileChannels];  // delta, delta u
  alignas(16) float y[steps][kTileChannels];
  float bias[kTileChannels], skip[kTileChannels];
};

template <class T, int kStates>
__device__ __forceinline__ void stage_group(typename ForwardShared<T, kStates>::Raw& raw,
                                            const ForwardArgs<T>& args, const Part& part,
                                            const Rows& rows, int step, int count) {
  const ScanInputs<T>& in = args.p.in;
  const ScanShape& s = args.p.shape;
  const std::int64_t row = rows.at(step);
  const int channel = part.direction * (s.channels / s.directions) + part.first;
  const auto channels = [&](T* to, const T* from, std::int64_t stride) {
    stage_rows(to, kTileChannels, from + row * stride + channel, rows.step * stride, count,
               part.channels, args.wide_channels);
  };
  channels(raw.u[0], in.u, in.u_stride);
  channels(raw.dt[0], in.dt, in.dt_stride);
  channels(raw.z[0], in.z, in.z_stride);
  const std::int64_t at = row * in.bc_stride + part.direction * in.bc_direction;
  stage_rows(raw.b[0], kStates, in.b + at, rows.step * in.bc_stride, count, s.state,
             args.wide_states);
  stage_rows(raw.c[0], kStates, in.c + at, rows.step * in.bc_stride, count, s.state,
             args.wide_states);
}

// Raw rows to what the scan multiplies with. Channels and states beyond the shape become zero.
template <class T, int kStates>
__device__ __forceinline__ void widen_group(ForwardShared<T, kStates>& shared,
                                            const typename ForwardShared<T, kStates>::Raw& raw,
                                            int channels, int state, int count) {
  constexpr int threads = Tile<kStates>::threads;
  for (int i = threadIdx.x; i < count * kTileChannels; i += threads) {
    const int t = i / kTileChannels, c = i % kTileChannels;
    float delta = 0, u = 0;
    if (c < channels) {
      delta = softplus(widen(raw.dt[t][c]) + shared.bias[c]);
      u = widen(raw.u[t][c]);
    }
    shared.delta[t][c] = {delta, delta * u};
  }
  for (int i = threadIdx.x; i < count * kStates; i += threads) {
    const int t = i / kStates, n = i % kStates;
    shared.b[t][n] = n < state ? widen(raw.b[t][n]) : 0.0f;
    shared.c[t][n] = n < state ? widen(raw.c[t][n]) : 0.0f;
  }
}

// y, and o = y silu(z), of a group of steps to global memory.
template <int kWide, class T, int kStates>
__device__ __forceinline__ void store_group(const ForwardShared<T, kStates>& shared,
                                            const typename ForwardShared<T, kStates>::Raw& raw,
                                            const ForwardArgs<T>& args, const Part& part,
                                            const Rows& rows, int step, int count) {
  const ScanShape& s = args.p.shape;
  const int channel = part.direction * (s.channels / s.directions) + part.first;
  constexpr int per_row = kTileChannels / kWide;
  for (int i = threadIdx.x; i < count * per_row; i += Tile<kStates>::threads) {
    const int t = i / per_row, c = i % per_row * kWide;
    if (c >= part.channels) continue;
    float y[kWide], o[kWide], u[kWide], z[kWide];
    load_wide(y, &shared.y[t][c]);
    load_wide(u, &raw.u[t][c]);
    load_wide(z, &raw.z[t][c]);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      y[k] += shared.skip[c + k] * u[k];
      o[k] = y[k] * z[k] * sigmoid(z[k]);
    }
    const std::int64_t at = rows.at(step + t) * s.channels + channel + c;
    store_narrow(args.p.o + at, o);
    if (args.p.y) store_narrow(args.p.y + at, y);
  }
}

// fp16 saves what it can hold; NaN stays NaN.
template <class T>
__device__ __forceinline__ float savable(float h) {
  if constexpr (std::is_same_v<T, f16>) return fabsf(h) > 65504.0f ? copysignf(65504.0f, h) : h;
  else return h;
}

template <class T, int kStates>
__global__ void __launch_bounds__(Tile<kStates>::threads, Tile<kStates>::blocks_per_sm)
    forward_kernel(const ForwardArgs<T> args) {
  using Cut = Tile<kStates>;
  constexpr int fours = Cut::per_thread / 4;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, kStates>*>(memory);
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions;
  const int blocks = ceil_div(s.length, kBlockSteps);
  const Part part = part_of(s, args.chunks, kTileChannels);
  const Rows rows = rows_of(s, part);
  const int first_step = part.first_block * kBlockSteps;
  const int end_step = min(part.end_block * kBlockSteps, s.length);
  const int direction_channel = part.direction * per_direction;

  // Odd lanes hold their two channels in swapped order, so that the first exchange of the sum over
  // lanes needs no selection: each lane keeps its slot 0 and gives its slot 1 away.
  const int lane = threadIdx.x % Cut::lanes;
  const int swap = Cut::lanes > 1 ? lane & 1 : 0;
  const int pair = threadIdx.x / Cut::lanes * 2;
  const int channel[2] = {pair + swap, pair + 1 - swap};

  for (int c = threadIdx.x; c < part.channels; c += Cut::threads) {
    shared.bias[c] = args.p.in.dt_bias[direction_channel + part.first + c];
    shared.skip[c] = args.p.in.d[direction_channel + part.first + c];
  }
  float h[2][Cut::per_thread], rate[2][Cut::per_thread];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const bool real = channel[k] < part.channels;
    const float* a_log =
        args.p.in.a_log +
        static_cast<std::int64_t>(direction_channel + part.first + channel[k]) * s.state;
    const float* start =
        args.start
            ? args.start + ((part.image_direction * args.chunks + part.chunk) * per_direction +
                            part.first + channel[k]) *
                               kStates
            : nullptr;
#pragma unroll
    for (int i = 0; i < Cut::per_thread; ++i) {
      const int n = (i / 4 * Cut::lanes + lane) * 4 + i % 4;
      rate[k][i] = real && n < s.state ? decay_rate(a_log[n]) : 0.0f;
      h[k][i] = real && start ? start[n] : 0.0f;
    }
  }

  int buffer = 0;
  stage_group<T, kStates>(shared.raw[0], args, part, rows, first_step,
                          min(Cut::steps, end_step - first_step));
  for (int step = first_step; step < end_step; step += Cut::steps, buffer ^= 1) {
    const int count = min(Cut::steps, end_step - step);
    copies_arrived();
    __syncthreads();
    if (step + Cut::steps < end_step)
      stage_group<T, kStates>(shared.raw[buffer ^ 1], args, part, rows, step + Cut::steps,
                              min(Cut::steps, end_step - step - Cut::steps));
    widen_group<T, kStates>(shared, shared.raw[buffer], part.channels, s.state, count);
    __syncthreads();

    for (int block = 0; block < count; block += kBlockSteps) {
      const int block_index = (step + block) / kBlockSteps;
      if (args.p.states && block_index > 0) {
        T* saved =
            static_cast<T*>(args.p.states) +
            ((part.image_direction * blocks + block_index) * per_direction + part.first) * kStates;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (channel[k] >= part.channels) continue;
#pragma unroll
          for (int j = 0; j < fours; ++j) {
            float four[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) four[e] = savable<T>(h[k][4 * j + e]);
            store_narrow(saved + channel[k] * kStates + (j * Cut::lanes + lane) * 4, four);
          }
        }
      }
      const int block_end = min(block + kBlockSteps, count);
#pragma unroll 1
      for (int t = block; t < block_end; ++t) {
        const float2 delta[2] = {shared.delta[t][channel[0]], shared.delta[t][channel[1]]};
        float y[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < fours; ++j) {
          float b[4], c[4];
          load_wide(b, &shared.b[t][(j * Cut::lanes + lane) * 4]);
          load_wide(c, &shared.c[t][(j * Cut::lanes + lane) * 4]);
#pragma unroll
          for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              float& state = h[k][4 * j + e];
              state = fmaf(fast_exp2(delta[k].x * rate[k][4 * j + e]), state, delta[k].y * b[e]);
              y[k] = fmaf(c[e], state, y[k]);
            }
        }
        if constexpr (Cut::lanes == 1) {
          *reinterpret_cast<float2*>(&shared.y[t][pair]) = {y[0], y[1]};
        } else {
          y[0] += __shfl_xor_sync(0xffffffffu, y[1], 1);
#pragma unroll
          for (int mask = 2; mask < Cut::lanes; mask *= 2)
            y[0] += __shfl_xor_sync(0xffffffffu, y[0], mask);
          if (lane < 2) shared.y[t][channel[0]] = y[0];
        }
      }
    }
    __syncthreads();
    if (args.wide_out) store_group<4>(shared, shared.raw[buffer], args, part, rows, step, count);
    else store_group<1>(shared, shared.raw[buffer], args, part, rows, step, count);
  }
}

}  // namespace
}  // namespace scan

template <class T>
std::size_t scan_forward_workspace(const CudaQueue& queue, const ScanShape& s) {
  scan::Carve workspace;
  scan::Carries::carve(workspace, s, scan_chunks(queue, s));
  return workspace.bytes();
}

template <class T>
void scan_forward(CudaQueue& queue, const ScanForward<T>& p) {
  const ScanShape& s = p.shape;
  const int chunks = scan_chunks(queue, s);
  const int per_direction = s.channels / s.directions;
  scan::Carve workspace(p.workspace);
  const scan::Carries carries = scan::Carries::carve(workspace, s, chunks);
  if (chunks > 1) scan::carry_chunks<T>(queue, s, p.in, nullptr, chunks, carries);

  const scan::ForwardArgs<T> args{
      p,
      chunks,
      carries.state,
      scan::wide_channels(s, p.in),
      scan::wide_states(s, p.in),
      scan::in_pieces(p.o, s.channels, per_direction) && scan::in_pieces(p.y)};
  const std::int64_t ctas = static_cast<std::int64_t>(s.batch) * s.directions * chunks *
                            ceil_div(per_direction, scan::kTileChannels);
  FM_CHECK(ctas <= kMaxGrid, "[selective_scan] at most 2^31 - 1 CTAs, got ", ctas);
  scan::with_padded_state(s.state, [&]<int kStates>() {
    launch(queue, "scan_forward", scan::forward_kernel<T, kStates>,
           dim3(static_cast<unsigned>(ctas)), scan::Tile<kStates>::threads,
           sizeof(scan::ForwardShared<T, kStates>), args);
  });
}

template std::size_t scan_forward_workspace<float>(const CudaQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<f16>(const CudaQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<bf16>(const CudaQueue&, const ScanShape&);
template void scan_forward(CudaQueue&, const ScanForward<float>&);
template void scan_forward(CudaQueue&, const ScanForward<f16>&);
template void scan_forward(CudaQueue&, const ScanForward<bf16>&);

}  // namespace fm
