// Backward: a CTA walks the blocks of steps of one image, direction and chunk from last to first.
//
// Per block every warp loops over the CTA's channels, 2 channels x 4 states a thread at a time: it
// takes the saved state, redoes the 7 steps with all states and decays in registers (one ex2 an
// element in all), and goes back through them. dB and dC gather over the channels in registers for
// the whole loop, so they are summed over lanes and warps once a block. q, the gradient of the
// state, and dA wait in shared memory for the next block. All sums have a fixed order.
#include "kernels/selective_scan/selective_scan.cuh"

namespace fm {
namespace scan {
namespace {

constexpr int kMaxChannels = 256;  // of a CTA: q and dA take 128 KB at 64 states
constexpr int kSumColumns = 32, kSumSlices = 8;

template <int kStates>
struct BackwardTile {
  static constexpr int warps = kStates == 128 ? 4 : 8;
  static constexpr int threads = warps * kWarp;
  static constexpr int state_lanes = kStates / 4;  // lanes that share a pair of channels
  static constexpr int pairs = kWarp / state_lanes;
  static constexpr int channels = warps * pairs * 2;  // of a CTA at a time
  static constexpr int gathered = 2 * kBlockSteps * kStates;  // dB and dC of a block
};

// What the CTA works on. It stands in shared memory: the main loop needs the registers.
struct alignas(16) Where {
  Part part;
  Rows rows;
  int channel;  // first channel of the CTA, counted over all directions
  int per_direction, blocks;
};

// Per-CTA shared memory, in bytes from its start. Rows of channels are `channels` long.
template <class T, int kStates>
struct BackwardLayout {
  using Tile = BackwardTile<kStates>;
  // Fixed: where the CTA is, decay rates and saved states on their way to each thread, B and C.
  static constexpr int where = 0;                                     // Where
  static constexpr int rates = sizeof(Where);                         // [2][threads] float4
  static constexpr int saved = rates + 2 * Tile::threads * 16;        // [2][threads][4] T
  static constexpr int matrices =                                     // [steps][2][states] float
      saved + 2 * Tile::threads * 4 * static_cast<int>(sizeof(T));
  static constexpr int raw_matrices =                                 // [2][steps][states] T
      matrices + Tile::gathered * 4;
  static constexpr int q = raw_matrices + Tile::gathered * static_cast<int>(sizeof(T));
  int da, terms, sums, raw, parameters, bytes;

  __host__ __device__ explicit BackwardLayout(int channels) {
    da = q + channels * kStates * 4;                  // q and da: [channels][states] float
    terms = da + channels * kStates * 4;              // [channels][steps] float4; later the warps'
    const int term_bytes = channels * kBlockSteps * 16;  // dB and dC
    const int warp_sums = Tile::warps * Tile::gathered * 4;
    sums = terms + (term_bytes > warp_sums ? term_bytes : warp_sums);  // [channels][steps] float2
    raw = sums + channels * kBlockSteps * 8;                           // [5][steps][channels] T
    parameters =                                                       // [4][channels] float
        raw + 5 * kBlockSteps * channels * static_cast<int>(sizeof(T));
    bytes = parameters + 4 * channels * 4;
  }
};

template <class T>
struct BackwardArgs {
  ScanBackward<T> p;
  int chunks, block_channels, channel_blocks;
  const float* q;        // gradients that enter the chunks at their ends; null: zero
  const float* rates;    // A log2(e), [channels][padded state]
  float* parameters;     // [image, chunk][channels (padded state + 2)]: dA, then dD, then dbias
  float* matrices;       // dB and dC of each channel block: [block][B L directions][2][state]
  bool wide_channels, wide_states;
};

enum RawRow { kRawU, kRawDt, kRawZ, kRawY, kRawDo };

// What the phases below share.
template <class T, int kStates>
struct Place {
  const BackwardArgs<T>& args;
  unsigned char* memory;

  template <class U>
  __device__ U* shared(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ const Where& where() const {
    return *shared<const Where>(BackwardLayout<T, kStates>::where);
  }
  __device__ BackwardLayout<T, kStates> at() const {
    return BackwardLayout<T, kStates>(args.block_channels);
  }
  __device__ int steps(int block) const {
    return min(kBlockSteps, args.p.shape.length - block * kBlockSteps);
  }
};

template <class T, int kStates>
__device__ __forceinline__ void stage_block(const Place<T, kStates>& place, int block) {
  const BackwardArgs<T>& args = place.args;
  const ScanInputs<T>& in = args.p.in;
  const ScanShape& s = args.p.shape;
  const std::int64_t row = place.where().rows.at(block * kBlockSteps);
  const int count = place.steps(block), direction = place.where().rows.step;
  const auto channels = [&](RawRow to, const T* from, std::int64_t stride) {
    stage_rows(place.template shared<T>(place.at().raw) + to * kBlockSteps * args.block_channels,
               args.block_channels, from + row * stride + place.where().channel, direction * stride, count,
               place.where().part.channels, args.wide_channels);
  };
  channels(kRawU, in.u, in.u_stride);
  channels(kRawDt, in.dt, in.dt_stride);
  channels(kRawZ, in.z, in.z_stride);
  channels(kRawY, args.p.y, s.channels);
  channels(kRawDo, args.p.d_o, s.channels);
  const std::int64_t first = row * in.bc_stride + place.where().part.direction * in.bc_direction;
  T* raw = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  stage_rows(raw, kStates, in.b + first, direction * in.bc_stride, count, s.state,
             args.wide_states);
  stage_rows(raw + kBlockSteps * kStates, kStates, in.c + first, direction * in.bc_stride, count,
             s.state, args.wide_states);
}

// Raw rows to {delta, delta u, dy, u} a channel and step and to B and C in floats; stores dz. Steps
// and channels beyond the shape become zero: they change neither q nor any sum.
template <class T, int kStates>
__device__ __forceinline__ void prepare_block(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  const BackwardArgs<T>& args = place.args;
  const int width = args.block_channels, count = place.steps(block);
  const T* raw = place.template shared<T>(place.at().raw);
  const float* bias = place.template shared<float>(place.at().parameters);
  float4* terms = place.template shared<float4>(place.at().terms);
  const int plane = kBlockSteps * width;
  for (int t = thread / kWarp; t < kBlockSteps; t += BackwardTile<kStates>::warps) {
    T* dz = args.p.dz + place.where().rows.at(block * kBlockSteps + t) * args.p.in.z_stride + place.where().channel;
    for (int c = thread % kWarp; c < width; c += kWarp) {
      float4 term = {0, 0, 0, 0};
      if (t < count && c < place.where().part.channels) {
        const T* at = raw + t * width + c;
        const float z = widen(at[kRawZ * plane]), d_o = widen(at[kRawDo * plane]);
        const float gate = sigmoid(z);
        dz[c] = narrow<T>(d_o * widen(at[kRawY * plane]) * gate * (1.0f + z * (1.0f - gate)));
        term.w = widen(at[kRawU * plane]);
        term.x = softplus(widen(at[kRawDt * plane]) + bias[c]);
        term.y = term.x * term.w;
        term.z = d_o * z * gate;
      }
      terms[c * kBlockSteps + t] = term;
    }
  }
  const T* raw_matrices = place.template shared<T>(BackwardLayout<T, kStates>::raw_matrices);
  float* matrices = place.template shared<float>(BackwardLayout<T, kStates>::matrices);
  const int state = args.p.shape.state;
  for (int i = thread; i < kBlockSteps * kStates; i += BackwardTile<kStates>::threads) {
    const int t = i / kStates, n = i % kStates;
    const bool real = t < count && n < state;
    matrices[2 * t * kStates + n] = real ? widen(raw_matrices[i]) : 0.0f;
    matrices[(2 * t + 1) * kStates + n] =
        real ? widen(raw_matrices[kBlockSteps * kStates + i]) : 0.0f;
  }
}

// Sums over the CTA's earlier blocks of dr and dy u, left in `sums` by finish_channels: a thread a
// channel.
template <class T, int kStates>
__device__ __forceinline__ void add_parameters(const Place<T, kStates>& place) {
  const int thread = thread_index();
  const int width = place.args.block_channels;
  float* parameters = place.template shared<float>(place.at().parameters);
  const float2* sums = place.template shared<float2>(place.at().sums);
  for (int c = thread; c < width; c += BackwardTile<kStates>::threads) {
    float dbias = parameters[2 * width + c], skip = parameters[3 * width + c];
    for (int t = 0; t < kBlockSteps; ++t) {
      dbias += sums[c * kBlockSteps + t].x;
      skip += sums[c * kBlockSteps + t].y;
    }
    parameters[2 * width + c] = dbias;
    parameters[3 * width + c] = skip;
  }
}

// From the sums over states to du and ddt. softplus' = 1 - exp(-delta) on both of its branches.
template <class T, int kStates>
__device__ __forceinline__ void finish_channels(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  const BackwardArgs<T>& args = place.args;
  const int width = args.block_channels, count = place.steps(block);
  const float* skip = place.template shared<float>(place.at().parameters) + width;
  const float4* terms = place.template shared<float4>(place.at().terms);
  float2* sums = place.template shared<float2>(place.at().sums);
  for (int t = thread / kWarp; t < kBlockSteps; t += BackwardTile<kStates>::warps) {
    const std::int64_t row =
        place.where().rows.at(block * kBlockSteps + t) * args.p.shape.channels + place.where().channel;
    for (int c = thread % kWarp; c < width; c += kWarp) {
      const float4 term = terms[c * kBlockSteps + t];
      const float2 sum = sums[c * kBlockSteps + t];
      const float ddt = (term.w * sum.x + kLn2 * sum.y) * -expm1f(-term.x);
      if (t < count && c < place.where().part.channels) {
        args.p.du[row + c] = narrow<T>(term.x * sum.x + skip[c] * term.z);
        args.p.ddt[row + c] = narrow<T>(ddt);
      }
      sums[c * kBlockSteps + t] = {ddt, term.z * term.w};
    }
  }
}

// dB and dC of a block, summed over the lanes of each warp that share states, to the warps' rows in
// shared memory. Halving exchange: of two values a lane keeps one and gives the other away.
template <class T, int kStates>
__device__ __forceinline__ void gather_matrices(const Place<T, kStates>& place,
                                                float (&gathered)[kBlockSteps][8]) {
  const int thread = thread_index();
  using Cut = BackwardTile<kStates>;
  const int lane = thread % kWarp;
  float* rows = place.template shared<float>(place.at().terms) +
                thread / kWarp * Cut::gathered + lane % Cut::state_lanes * 4;
#pragma unroll
  for (int t = 0; t < kBlockSteps; ++t) {
    float(&v)[8] = gathered[t];  // dB, then dC of the thread's four states
    int matrix = 0, offset = 0;
    if constexpr (Cut::pairs >= 2) {
      const bool high = lane & 16;
      matrix = high;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float given = high ? v[i] : v[4 + i];
        v[i] = (high ? v[4 + i] : v[i]) + __shfl_xor_sync(0xffffffffu, given, 16);
      }
    }
    if constexpr (Cut::pairs >= 4) {
      const bool high = lane & 8;
      offset += high ? 2 : 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float given = high ? v[i] : v[2 + i];
        v[i] = (high ? v[2 + i] : v[i]) + __shfl_xor_sync(0xffffffffu, given, 8);
      }
    }
    if constexpr (Cut::pairs >= 8) {
      const bool high = lane & 4;
      offset += high;
      const float given = high ? v[0] : v[1];
      v[0] = (high ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, given, 4);
    }
    if constexpr (Cut::pairs >= 16) v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);

    float* to = rows + (2 * t + matrix) * kStates + offset;
    if constexpr (Cut::pairs == 1) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
      *reinterpret_cast<float4*>(to + kStates) = {v[4], v[5], v[6], v[7]};
    } else if constexpr (Cut::pairs == 2) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    } else if constexpr (Cut::pairs == 4) {
      *reinterpret_cast<float2*>(to) = {v[0], v[1]};
    } else if constexpr (Cut::pairs == 8) {
      *to = v[0];
    } else {
      if (!(lane & 2)) *to = v[0];
    }
  }
}

// Sums the warps' rows: dB and dC themselves where the CTA has all channels of the direction, else
// its share of them.
template <class T, int kStates>
__device__ __forceinline__ void store_matrices(const Place<T, kStates>& place, int block) {
  const int thread = thread_index();
  using Cut = BackwardTile<kStates>;
  const BackwardArgs<T>& args = place.args;
  const ScanShape& s = args.p.shape;
  const float* rows = place.template shared<float>(place.at().terms);
  const int count = place.steps(block);
  for (int i = thread; i < count * 2 * kStates; i += Cut::threads) {
    const int n = i % kStates, matrix = i / kStates % 2, t = i / (2 * kStates);
    if (n >= s.state) continue;
    float sum = rows[i];
#pragma unroll
    for (int warp = 1; warp < Cut::warps; ++warp) sum += rows[warp * Cut::gathered + i];
    const std::int64_t row = place.where().rows.at(block * kBlockSteps + t);
    if (args.channel_blocks == 1) {
      T* to = matrix ? args.p.dc : args.p.db;
      to[row * args.p.in.bc_stride + place.where().part.direction * args.p.in.bc_direction + n] =
          narrow<T>(sum);
    } else {
      const std::int64_t tokens = static_cast<std::int64_t>(s.batch) * s.length;
      const std::int64_t channel_block = place.where().part.first / args.block_channels;
      const std::int64_t group =
          (channel_block * tokens + row) * s.directions + place.where().part.direction;
      args.matrices[(group * 2 + matrix) * s.state + n] = sum;
    }
  }
}

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
    copy_async<16>(rates + k * Cut::threads,
                   args.rates + static_cast<std::int64_t>(where.channel + c) * kStates +
                       share.state_lane * 4);
    if (block > 0)
      copy_async<4 * sizeof(T)>(saved + k * Cut::threads * 4, states + c * kStates);
  }
}

template <class T, int kStates>
__global__ void __launch_bounds__(BackwardTile<kStates>::threads, kStates == 128 ? 2 : 1)
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
    *place.template shared<Where>(Layout::where) = {
        part, rows_of(s, part), part.direction * per_direction + part.first, per_direction,
        ceil_div(s.length, kBlockSteps)};
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
      float rate[2][4], h[kBlockSteps + 1][2][4], decay[kBlockSteps][2][4], q[2][4];
      const int thread = thread_index();
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        load_wide(rate[k], place.template shared<float>(Layout::rates) +
                               (k * Cut::threads + thread) * 4);
        if (block > 0)
          load_wide(h[0][k],
                    place.template shared<T>(Layout::saved) + (k * Cut::threads + thread) * 4);
        else h[0][k][0] = h[0][k][1] = h[0][k][2] = h[0][k][3] = 0;
      }
      forget_origin(base);
      if (base == 0 && block > part.first_block) stage_block(place, block - 1);
      if (base + Cut::channels < width) fetch_states(place, block, base + Cut::channels);
      else if (block > part.first_block) fetch_states(place, block - 1, 0);
      if (base + thread / kWarp * (2 * Cut::pairs) >= part.channels) continue;  // a whole warp

      const Share<kStates> share(thread);
      const int state_lane = share.state_lane;
      const int channel[2] = {base + share.pair + share.swap, base + share.pair + 1 - share.swap};
      const float4* terms[2];
      float* q_at[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        terms[k] = place.template shared<float4>(place.at().terms) + channel[k] * kBlockSteps;
        q_at[k] =
            place.template shared<float>(Layout::q) + channel[k] * kStates + state_lane * 4;
      }
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
            // The last state's only use; doing it here saves the eight registers that end spilling.
            if (t == kBlockSteps - 1)
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
            if (t < kBlockSteps - 1)
              gathered[t][4 + e] = fmaf(term.z, h[t + 1][k][e], gathered[t][4 + e]);
            sum_b[k] = fmaf(b[e], g, sum_b[k]);
            q[k][e] = g * decay[t][k][e];
            const float through = q[k][e] * h[t][k][e];
            sum_a[k] = fmaf(rate[k][e], through, sum_a[k]);
            da[k][e] = fmaf(term.x, through, da[k][e]);
          }
        }
        sum_b[0] += __shfl_xor_sync(0xffffffffu, sum_b[1], 1);
        sum_a[0] += __shfl_xor_sync(0xffffffffu, sum_a[1], 1);
        float* sums = place.template shared<float>(place.at().sums) +
                      (channel[0] * kBlockSteps + t) * 2;
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
        float* da_at = q_at[k] + width * kStates;
        float before[4];
        load_wide(before, da_at);
#pragma unroll
        for (int e = 0; e < 4; ++e) da[k][e] += before[e];
        store_narrow(da_at, da[k]);
      }
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
  float* out = args.parameters + (static_cast<std::int64_t>(part.image) * args.chunks + part.chunk) *
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
  int most = unit;
  while (most + unit <= kMaxChannels &&
         static_cast<std::size_t>(BackwardLayout<T, kStates>(most + unit).bytes) <=
             queue.limits.shared_bytes_per_block)
    most += unit;
  const std::int64_t parts = static_cast<std::int64_t>(s.batch) * s.directions * chunks;
  const std::int64_t filling = queue.limits.multiprocessors / parts;
  const std::int64_t shares = std::min<std::int64_t>(
      std::max<std::int64_t>(ceil_div(per_direction, most), filling), ceil_div(per_direction, unit));
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

  const BackwardArgs<T> args{p,
                             plan.chunks,
                             plan.block_channels,
                             plan.channel_blocks,
                             plan.carries.state,
                             plan.rates,
                             plan.parameters,
                             plan.matrices,
                             wide_channels(s, p.in) && in_pieces(p.y, s.channels, per_direction) &&
                                 in_pieces(p.d_o),
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
