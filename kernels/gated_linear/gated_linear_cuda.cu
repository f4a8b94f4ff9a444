// Weights stay in registers, rows stream past them: a warp owns 32 hidden units, holds their 2 x 32
// columns of w as fragments of mma.sync (128 registers at 128 inputs), and takes 16 rows a turn. So
// there is no shared memory and no barrier; a block's warps read the same rows, from L1.
//
// Two permutations make every access 16 bytes with no exchange between lanes. The order of the
// inputs in a product is free as long as x and w agree: lane t of a quad holds inputs 8t .. 8t + 7
// of each 32, which serve two k16 steps. The order of the units is free too: column g of the
// product's tile i is unit 8 (g / 2) + 2i + g % 2, so that the sums a lane holds, columns 2t and
// 2t + 1 of four tiles, are units 8t .. 8t + 7. Fragment layout: the PTX ISA, mma.m16n8k16.
#include <algorithm>

#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/gated_linear/gated_linear_steps.h"

namespace fm {
namespace {

constexpr int kWarps = 8;   // one block an SM, of 255 registers a thread
constexpr int kUnits = 32;  // of a warp
constexpr int kTiles = kUnits / 8;
constexpr int kRows = 16;   // of a turn
constexpr int kChunk = 32;  // inputs of two k16 steps
constexpr int kMaxIn = 4 * kChunk;
constexpr int kWide = 8;  // elements of a 16-byte access

using Words = Vec<unsigned, 4>;  // 8 elements

// sum += A B, [16, 16] times [16, 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], unsigned a0, unsigned a1, unsigned a2,
                                             unsigned a3, unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The approximate reciprocal is within 1 ulp, and 0 for an infinite argument, as it should be.
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

__device__ __forceinline__ Words load_words(const void* from) {
  return *static_cast<const Words*>(from);
}

template <class T>
__device__ __forceinline__ float element(const Words& words, int i) {
  const unsigned word = words.at[i / 2];
  return widen(T{static_cast<std::uint16_t>(i % 2 ? word >> 16 : word & 0xffffu)});
}

// Which units and rows a warp and its lane have.
struct Place {
  int g, t;                    // the lane's row within eight and its position in the quad
  int slice;                   // units [32 slice, 32 slice + 32)
  std::int64_t first, groups;  // turns first, first + groups, ...

  __device__ Place(int slices, std::int64_t all_groups) : groups(all_groups) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    g = lane / 4;
    t = lane % 4;
    slice = static_cast<int>(warp % slices);
    first = warp / slices;
  }
  __device__ int unit() const { return slice * kUnits + t * kWide; }  // of the lane's eight
};

// a's or b's part of the weights: fragments of kTiles tiles, and the lane's eight biases.
template <int kChunks, class T>
struct Weights {
  Words at[kTiles][kChunks];
  Words bias;

  __device__ Weights(const T* w, const T* all_biases, const GatedLinearShape& s, const Place& p) {
    const int first_unit = p.slice * kUnits + p.g / 2 * kWide;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int input = c * kChunk + p.t * kWide;
        at[i][c] = {};
        if (first_unit < s.hidden && input < s.in)
          at[i][c] = load_words(w + static_cast<std::int64_t>(first_unit + 2 * i + p.g % 2) * s.in +
                                input);
      }
    bias = {};
    if (p.unit() < s.hidden) bias = load_words(all_biases + p.unit());
  }
};

// Rows g and g + 8 of a turn: this lane's inputs.
template <int kChunks, class T>
struct Inputs {
  Words at[kChunks][2];

  // Past the last row the last one is read again. Past the last input the first ones are, where
  // the weights are zero.
  __device__ void load(int chunk, const T* x, const GatedLinearShape& s, const Place& p,
                       std::int64_t turn) {
    const int input = chunk * kChunk + p.t * kWide;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = min(turn * kRows + half * 8 + p.g, s.rows - 1);
      at[chunk][half] = load_words(x + row * s.in + (input < s.in ? input : 0));
    }
  }
};

// The sums of a turn, from the biases on.
struct Sums {
  float at[kTiles][4];

  template <class T>
  __device__ void start(const Words& bias) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) at[i][j] = element<T>(bias, 2 * i + j % 2);
  }
  // Unit i of the lane's eight in row g + 8 half.
  __device__ float operator()(int half, int i) const {
    return at[i / 2][2 * half + i % 2];
  }
};

// a and b of a turn; the inputs of turn `next` are loaded as those of this one are used up.
template <int kChunks, class T, class P>
__device__ __forceinline__ void multiply(Sums& a, Sums& b, const Weights<kChunks, T>& wa,
                                         const Weights<kChunks, T>& wb, Inputs<kChunks, T>& x,
                                         const P& p, const Place& place, std::int64_t next) {
  a.start<T>(wa.bias);
  b.start<T>(wb.bias);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const auto& [low, high] = x.at[c];
#pragma unroll
    for (int k = 0; k < 4; k += 2)
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        multiply_add<T>(a.at[i], low.at[k], high.at[k], low.at[k + 1], high.at[k + 1],
                        wa.at[i][c].at[k], wa.at[i][c].at[k + 1]);
        multiply_add<T>(b.at[i], low.at[k], high.at[k], low.at[k + 1], high.at[k + 1],
                        wb.at[i][c].at[k], wb.at[i][c].at[k + 1]);
      }
    x.load(c, p.x, p.shape, place, next);
  }
}

template <int kChunks, class T>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    forward_kernel(GatedLinearForward<T> p, int slices, std::int64_t groups) {
  const Place place(slices, groups);
  if (place.first >= groups) return;
  const GatedLinearShape& s = p.shape;
  const Weights<kChunks, T> wa(p.w, p.bias, s, place);
  const Weights<kChunks, T> wb(p.w + static_cast<std::int64_t>(s.hidden) * s.in, p.bias + s.hidden,
                               s, place);
  Inputs<kChunks, T> x;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) x.load(c, p.x, s, place, place.first);

  for (std::int64_t turn = place.first; turn * kRows < s.rows; turn += groups) {
    Sums a, b;
    multiply(a, b, wa, wb, x, p, place, turn + groups);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float y[kWide];
#pragma unroll
      for (int i = 0; i < kWide; ++i) y[i] = a(half, i) * sigmoid(a(half, i)) * b(half, i);
      const std::int64_t row = turn * kRows + half * 8 + place.g;
      if (row < s.rows && place.unit() < s.hidden)
        store_narrow(p.y + row * s.hidden + place.unit(), y);
    }
  }
}

template <int kChunks, class T>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    backward_kernel(GatedLinearBackward<T> p, int slices, std::int64_t groups) {
  const Place place(slices, groups);
  if (place.first >= groups) return;
  const GatedLinearShape& s = p.shape;
  const Weights<kChunks, T> wa(p.w, p.bias, s, place);
  const Weights<kChunks, T> wb(p.w + static_cast<std::int64_t>(s.hidden) * s.in, p.bias + s.hidden,
                               s, place);
  const int unit = min(place.unit(), s.hidden - kWide);  // what lanes past the last unit read
  const auto load_dy = [&](Words(&dy)[2], std::int64_t turn) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      dy[half] =
          load_words(p.dy + min(turn * kRows + half * 8 + place.g, s.rows - 1) * s.hidden + unit);
  };
  Inputs<kChunks, T> x;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) x.load(c, p.x, s, place, place.first);

  for (std::int64_t turn = place.first; turn * kRows < s.rows; turn += groups) {
    Words dy[2];
    load_dy(dy, turn);
    Sums a, b;
    multiply(a, b, wa, wb, x, p, place, turn + groups);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float da[kWide], db[kWide], y[kWide];
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const float d = element<T>(dy[half], i), sig = sigmoid(a(half, i));
        const float silu = a(half, i) * sig;
        da[i] = d * b(half, i) * sig * (1.0f + a(half, i) * (1.0f - sig));
        db[i] = d * silu;
        y[i] = silu * b(half, i);
      }
      const std::int64_t row = turn * kRows + half * 8 + place.g;
      if (row < s.rows && place.unit() < s.hidden) {
        T* const dab = p.dab + row * 2 * s.hidden + place.unit();
        store_narrow(dab, da);
        store_narrow(dab + s.hidden, db);
        store_narrow(p.y + row * s.hidden + place.unit(), y);
      }
    }
  }
}

// A warp for every slice of the units, and as many groups of rows as there are warps for.
struct Split {
  int slices;
  std::int64_t groups;

  Split(const CudaQueue& queue, const GatedLinearShape& s)
      : slices(ceil_div(s.hidden, kUnits)),
        groups(std::min<std::int64_t>(
            static_cast<std::int64_t>(queue.limits.multiprocessors) * kWarps / slices,
            ceil_div(s.rows, kRows))) {}
  dim3 grid() const { return dim3(static_cast<unsigned>(ceil_div(slices * groups, kWarps))); }
};

// Calls f<chunks>() for the kernel of this many inputs.
template <class F>
void with_chunks(int in, F&& f) {
  if (in <= kChunk) f.template operator()<1>();
  else if (in <= 2 * kChunk) f.template operator()<2>();
  else if (in <= 3 * kChunk) f.template operator()<3>();
  else f.template operator()<4>();
}

}  // namespace

template <class T>
bool gated_linear_keeps_ab(CudaQueue& queue, const GatedLinearShape& s) {
  return sizeof(T) != 2 || s.in > kMaxIn || Split(queue, s).groups < 1;
}

template <class T>
void gated_linear_forward(CudaQueue& queue, const GatedLinearForward<T>& p) {
  check_shape(p.shape);
  if constexpr (sizeof(T) == 2) {
    if (!gated_linear_keeps_ab<T>(queue, p.shape)) {
      const Split split(queue, p.shape);
      with_chunks(p.shape.in, [&]<int kChunks>() {
        launch(queue, "gated_linear_forward", forward_kernel<kChunks, T>, split.grid(),
               kWarps * kWarp, 0, p, split.slices, split.groups);
      });
      return;
    }
  }
  gated_linear_forward_steps(queue, p);
}

template <class T>
void gated_linear_backward(CudaQueue& queue, const GatedLinearBackward<T>& p) {
  check_shape(p.shape);
  if constexpr (sizeof(T) == 2) {
    if (!gated_linear_keeps_ab<T>(queue, p.shape)) {
      const Split split(queue, p.shape);
      with_chunks(p.shape.in, [&]<int kChunks>() {
        launch(queue, "gated_linear_backward", backward_kernel<kChunks, T>, split.grid(),
               kWarps * kWarp, 0, p, split.slices, split.groups);
      });
      return;
    }
  }
  gated_linear_backward_steps(queue, p);
}

template bool gated_linear_keeps_ab<float>(CudaQueue&, const GatedLinearShape&);
template bool gated_linear_keeps_ab<f16>(CudaQueue&, const GatedLinearShape&);
template bool gated_linear_keeps_ab<bf16>(CudaQueue&, const GatedLinearShape&);
template void gated_linear_forward(CudaQueue&, const GatedLinearForward<float>&);
template void gated_linear_forward(CudaQueue&, const GatedLinearForward<f16>&);
template void gated_linear_forward(CudaQueue&, const GatedLinearForward<bf16>&);
template void gated_linear_backward(CudaQueue&, const GatedLinearBackward<float>&);
template void gated_linear_backward(CudaQueue&, const GatedLinearBackward<f16>&);
template void gated_linear_backward(CudaQueue&, const GatedLinearBackward<bf16>&);

}  // namespace fm
