// What the CUDA kernels of the selective scan share: how the sequence, the channels and the states
// are cut, small device functions, and staging of global rows in shared memory.
//
// Time is counted in the direction's own order ("step"); token = step, or L - 1 - step when the
// direction runs backwards. Steps are cut into blocks of kBlockSteps; the state at the start of
// every kBlocksPerSave-th block is saved as [image][direction][save][channel of the direction]
// [padded state] in T (fp16: magnitudes above 65504 are saved as 65504), except save 0, whose state
// is zero. Chunks are runs of whole saves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/base/approx.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/selective_scan/selective_scan.h"

namespace fm::scan {

// 7 divides the paper's 196 tokens, and 7 steps of 8 states and decays fit the registers of the
// backward pass.
constexpr int kBlockSteps = 7;
constexpr int kBlocksPerSave = 1;
constexpr int kSaveSteps = kBlocksPerSave * kBlockSteps;
constexpr int kTileChannels = 128;  // of a CTA in the forward and the chunk passes
constexpr int kLowRank = 8;         // of dt's projection, padded with zeros
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Throws for a shape outside the contract.
void check_shape(const ScanShape&);

// State counts are padded to a power of two from 8 to 128; B, C and A are zero in the padding, so
// its states stay zero.
inline int padded_state(int state) {
  int padded = 8;
  while (padded < state) padded *= 2;
  return padded;
}

// Calls body<padded>() for the padded state count.
template <class Body>
void with_padded_state(int state, Body&& body) {
  switch (padded_state(state)) {
    case 8: return body.template operator()<8>();
    case 16: return body.template operator()<16>();
    case 32: return body.template operator()<32>();
    case 64: return body.template operator()<64>();
    default: return body.template operator()<128>();
  }
}

// The tile of the forward and the chunk passes: a thread owns two neighbouring channels and
// per_thread states; `lanes` lanes of a warp share the channels. A lane's states are the runs
// (j lanes + lane) run, j = 0, 1, ...: a saved run of 8 is one 16-byte store, and the lanes of a
// channel read B and C without bank conflicts.
template <int kStates>
struct Tile {
  static constexpr int per_thread = kStates >= 32 ? 16 : 8;
  static constexpr int run = kStates == 128 ? 4 : 8;
  static constexpr int lanes = kStates / per_thread;
  static constexpr int warp_channels = kWarp / lanes * 2;
  static constexpr int warps = kTileChannels / warp_channels;
  static constexpr int threads = warps * kWarp;
  static constexpr int steps = kStates == 128 ? kBlockSteps : 2 * kBlockSteps;  // staged at a time
  // 128 registers a thread hold 32 states, 32 decay rates and the rest; 96 do for 16 of each.
  static constexpr int blocks_per_sm = (per_thread == 16 ? 512 : 640) / threads;
  // So many of a thread's decays are polynomials in the chunk pass, which has fewer multiply-adds
  // of its own than the forward (there none are; with 8 states a thread, staging leaves no time for
  // any).
  static constexpr int chunk_polynomials = per_thread == 16 ? 4 : 0;
  // In staging a lane takes `piece` channels of a step at a time; so many steps a round.
  static constexpr int piece = 4;
  static constexpr int row_lanes = kWarp / (warp_channels / piece);
  static constexpr int rounds = ceil_div(steps, row_lanes);
  static constexpr int padded_steps = rounds * row_lanes;
};

// The part of the work a CTA does; blockIdx.x counts channel blocks, directions, images, chunks,
// the fastest first, so that the CTAs that share B and C run together.
struct Part {
  int image, direction, chunk;
  int first, channels;           // channels of this CTA, counted in the direction
  int first_block, end_block;    // blocks of steps
  std::int64_t image_direction;  // image * directions + direction
};

// The chunk's first block.
__device__ inline int chunk_start(int chunk, int chunks, int saves) {
  return static_cast<int>(static_cast<std::int64_t>(chunk) * saves / chunks) * kBlocksPerSave;
}

__device__ __forceinline__ Part part_of(const ScanShape& s, int chunks, int block_channels) {
  const int per_direction = s.channels / s.directions;
  const int channel_blocks = ceil_div(per_direction, block_channels);
  const int saves = ceil_div(s.length, kSaveSteps);
  Part part;
  unsigned index = blockIdx.x;
  part.first = static_cast<int>(index % channel_blocks) * block_channels;
  index /= channel_blocks;
  part.direction = static_cast<int>(index % s.directions);
  index /= s.directions;
  part.image = static_cast<int>(index % s.batch);
  part.chunk = static_cast<int>(index / s.batch);
  part.channels = min(block_channels, per_direction - part.first);
  part.first_block = chunk_start(part.chunk, chunks, saves);
  part.end_block = min(chunk_start(part.chunk + 1, chunks, saves), ceil_div(s.length, kBlockSteps));
  part.image_direction = static_cast<std::int64_t>(part.image) * s.directions + part.direction;
  return part;
}

// Where a step's token is: row index in [B, L] and the row's increment from step to step.
struct Rows {
  std::int64_t first;
  int step;
  __device__ std::int64_t at(int step_index) const {
    return first + static_cast<std::int64_t>(step) * step_index;
  }
};

__device__ __forceinline__ Rows rows_of(const ScanShape& s, const Part& part) {
  const std::int64_t image = static_cast<std::int64_t>(part.image) * s.length;
  return part.direction ? Rows{image + s.length - 1, -1} : Rows{image, 1};
}

// max(x, 0) + log(1 + e^-|x|): keeps its relative accuracy where the result is small, needs no
// branch at 20 (there the logarithm is below half an ulp), and passes NaN. The logarithm is e times
// a minimax polynomial of e in [0, 1], relative error 3e-8, for 16-bit types 1e-5.
template <class T = float>
__device__ __forceinline__ float softplus(float x) {
  const float e = exp2_approx(-kLog2e * fabsf(x));
  float p;
  if constexpr (sizeof(T) == 2) {
    p = fmaf(-0.023869006f, e, 0.101221614f);
    p = fmaf(p, e, -0.210047752f);
    p = fmaf(p, e, 0.325206161f);
    p = fmaf(p, e, -0.499361247f);
    p = fmaf(p, e, 0.999991596f);
  } else {
    p = fmaf(0.00523269409f, e, -0.0295052379f);
    p = fmaf(p, e, 0.0782259554f);
    p = fmaf(p, e, -0.136632457f);
    p = fmaf(p, e, 0.191060066f);
    p = fmaf(p, e, -0.24842982f);
    p = fmaf(p, e, 0.333190978f);
    p = fmaf(p, e, -0.499994934f);
    p = fmaf(p, e, 0.99999994f);
  }
  return fmaf(p, e, fmaxf(x, 0.0f));
}
// A log2(e), the rate at which a channel's state decays as a power of two.
__device__ __forceinline__ float decay_rate(float a_log) {
  return -expf(a_log) * kLog2e;
}

// 2^-(delta rate) by multiply-adds alone, for scaled_rate = rate / kLeastExponent: the exponent is
// split into an integer, which goes to the result's exponent, and f in [-1/2, 1/2], of which 2^f is
// a minimax polynomial with p(0) = 1, within 1e-4 (the argument reduction of Cody and Waite 1980;
// sharing out exponentials so is FlashAttention-4's). Splitting at the nearest integer leaves small
// exponents as they are: 1 - 2^-x keeps its relative accuracy, and slow states live as long as they
// should. Decays below 2^-125 become that, by the saturating product; it turns NaN into 0, but
// delta u brings NaN to the state all the same.
constexpr float kLeastExponent = 125.0f;
__device__ __forceinline__ float exp2_polynomial(float delta, float scaled_rate) {
  constexpr float magic = 12582912.0f;  // 1.5 2^23: the integer stands in the sum's low bits
  const float s = __saturatef(delta * scaled_rate);
  const float sum = fmaf(s, -kLeastExponent, magic);
  const float f = fmaf(s, -kLeastExponent, magic - sum);
  const float p = fmaf(fmaf(fmaf(0.055420616f, f, 0.242025343f), f, 0.693188551f), f, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(sum) << 23));
}

// threadIdx.x, read anew: what staging derives from it must not stay in registers during a main
// loop that needs nearly all of them.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// To the same end: a loop counter the compiler cannot replace by several running products of it.
__device__ __forceinline__ void forget_origin(int& counter) {
  asm volatile("" : "+r"(counter));
}

template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned to = shared_address(shared);
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes)
                 : "memory");
}
// Zeros, and nothing is read, where not `real`.
template <int kBytes>
__device__ __forceinline__ void copy_async_or_zero(void* shared, const void* global, bool real) {
  const unsigned to = shared_address(shared);
  const int bytes = real ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
}
// Waits for all copies this thread has started.
__device__ __forceinline__ void copies_arrived() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Copies `rows` rows of `width` elements to shared memory, a warp a row; has arrived after
// copies_arrived() and a barrier. `wide`: rows are aligned to and made of 16-byte pieces.
template <class T>
__device__ __forceinline__ void stage_rows(T* to, int to_stride, const T* from, std::int64_t stride,
                                           int rows, int width, bool wide) {
  constexpr int piece = 16 / sizeof(T);
  const int thread = thread_index(), lane = thread % kWarp, warps = blockDim.x / kWarp;
#pragma unroll 1
  for (int row = thread / kWarp; row < rows; row += warps) {
    const T* source = from + row * stride;
    T* target = to + row * to_stride;
    if (wide) {
#pragma unroll 1
      for (int i = lane * piece; i < width; i += kWarp * piece)
        copy_async<16>(target + i, source + i);
    } else {
#pragma unroll 1
      for (int i = lane; i < width; i += kWarp) target[i] = source[i];
    }
  }
}

// True when every stride, in elements of T, and the address are whole 16-byte pieces.
template <class T, class... Strides>
bool in_pieces(const T* pointer, Strides... strides) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 &&
         (... && (strides * static_cast<std::int64_t>(sizeof(T)) % 16 == 0));
}

// Which of the inputs can be moved 16 bytes at a time.
template <class T>
bool wide_channels(const ScanShape& s, const ScanInputs<T>& in) {
  const int per_direction = s.channels / s.directions;
  return in_pieces(in.u, in.u_stride, per_direction) &&
         (!in.dt || in_pieces(in.dt, in.dt_stride, per_direction)) &&
         in_pieces(in.z, in.z_stride, per_direction);
}
template <class T>
bool wide_states(const ScanShape& s, const ScanInputs<T>& in) {
  return in_pieces(in.b, in.bc_stride, in.bc_direction, s.state) && in_pieces(in.c);
}

template <class T>
bool wide_low(const ScanInputs<T>& in) {
  return in.rank == kLowRank && in_pieces(in.dt_low, in.bc_stride, in.bc_direction);
}

// Cuts a workspace into 256-byte aligned arrays; with a null base it only counts.
class Carve {
 public:
  explicit Carve(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}
  float* floats(std::int64_t count) {
    std::byte* at = base_ ? base_ + bytes_ : nullptr;
    bytes_ += ceil_div(static_cast<std::size_t>(count) * sizeof(float), std::size_t{256}) * 256;
    return reinterpret_cast<float*>(at);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

// The chunked path's carries: one state a chunk, channel and padded state, and the sum of delta a
// chunk and channel, which decays a state from one end of the chunk to the other.
struct Carries {
  float* state = nullptr;  // [image][direction][chunk][channel of the direction][padded state]
  float* delta = nullptr;  // [image][direction][chunk][channel of the direction]

  static Carries carve(Carve& workspace, const ScanShape& s, int chunks) {
    if (chunks < 2) return {};
    const std::int64_t rows = static_cast<std::int64_t>(s.batch) * chunks * s.channels;
    Carries carries;
    carries.state = workspace.floats(rows * padded_state(s.state));
    carries.delta = workspace.floats(rows);
    return carries;
  }
};

// Forward (d_o null): the state every chunk starts with. Backward: the gradient q that every chunk
// gets from the one after it. Scans all chunks at once from zero, then carries over.
template <class T>
void carry_chunks(CudaQueue&, const ScanShape&, const ScanInputs<T>&, const T* d_o, int chunks,
                  const Carries&);

// Two states in fp16, the first in the low half: what it can hold of them. NaN stays NaN.
__device__ __forceinline__ unsigned state_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace fm::scan
