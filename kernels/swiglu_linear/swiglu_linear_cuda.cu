#include "kernels/base/check.h"
#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/swiglu_linear/swiglu_linear.h"

// A block keeps 96 rows of x (and of dy) and walks over the hidden units, 32 at a time. A warp has
// 16 of the rows, as A fragments in registers for the whole walk; the weights of the next 32 units
// arrive while those of the present ones are multiplied. At width 128 that is 96 KB of shared
// memory and two blocks a multiprocessor on Hopper, one on devices with 99 KB; M = 50176 rows are
// 1.98 waves of 264 blocks.
namespace fm {
namespace {

constexpr int kWarps = 6, kThreads = kWarps * kWarp, kBlockRows = 16 * kWarps;
constexpr int kUnits = 32;          // hidden units a stage
constexpr int kTiles = kUnits / 8;  // column tiles of a product
constexpr int kChunk = 8;           // elements of 16 bytes

// Where thread t of a quad has columns 2t and 2t + 1 of each of the 4 column tiles, it shall have 8
// neighbouring units, one 16-byte access: column c of tile j is unit 8 (c / 2) + 2 j + c % 2.
__device__ __forceinline__ int column_of(int unit) {
  return unit % 8 / 2 * 8 + unit / 8 * 2 + unit % 2;  // tile * 8 + column
}

// Rows of kWidth elements with their 16-byte chunks permuted so that the 8 rows of an 8 x 8 matrix
// lie in different banks.
template <int kWidth>
__device__ __forceinline__ int at_chunk(int row, int chunk) {
  return row * kWidth + ((chunk ^ (row & 7)) * kChunk);
}
// The same for rows of 32 elements, two of which share 128 bytes.
__device__ __forceinline__ int at_short_chunk(int row, int chunk) {
  return row * kUnits + ((chunk ^ (row / 2 & 3)) * kChunk);
}

template <class T, int kWidth>
struct Stage {
  T w12[2 * kUnits * kWidth];  // rows in column order: a's 32, b's 32
  T w3[kWidth * kUnits];       // columns in column order
};

template <class T, int kWidth, bool kBackward>
struct Shared {
  Stage<T, kWidth> stages[2];
  T x[kBlockRows * kWidth];
  T dy[kBackward ? kBlockRows * kWidth : kChunk];
};

template <class T>
struct Args {
  SwigluLinearShape shape;
  const T *x, *w12, *bias, *w3, *dy;
  T *h, *dab;
};

template <class T, int kWidth>
__device__ void stage_rows(T* to, const T* from, std::int64_t first, std::int64_t rows) {
  constexpr int per_row = kWidth / kChunk;
  for (int i = threadIdx.x; i < kBlockRows * per_row; i += kThreads) {
    const int row = i / per_row, chunk = i % per_row;
    const bool there = first + row < rows;
    copy_async<16>(to + at_chunk<kWidth>(row, chunk),
                   from + (there ? first + row : 0) * kWidth + chunk * kChunk, there);
  }
}

template <class T, int kWidth, bool kBackward>
__device__ void stage_weights(Stage<T, kWidth>& to, const Args<T>& p, int first_unit) {
  constexpr int per_row = kWidth / kChunk;
  for (int i = threadIdx.x; i < 2 * kUnits * per_row; i += kThreads) {
    const int row = i / per_row, chunk = i % per_row;
    const int half = row / kUnits, unit = row % kUnits;
    const std::int64_t from = std::int64_t{half} * p.shape.hidden + first_unit + unit;
    copy_async<16>(to.w12 + at_chunk<kWidth>(half * kUnits + column_of(unit), chunk),
                   p.w12 + from * kWidth + chunk * kChunk);
  }
  if constexpr (kBackward) {
    for (int i = threadIdx.x; i < kWidth * kUnits / 2; i += kThreads) {
      const int row = i / (kUnits / 2), unit = i % (kUnits / 2) * 2, column = column_of(unit);
      copy_async<4>(to.w3 + at_short_chunk(row, column / 8) + column % 8,
                    p.w3 + std::int64_t{row} * p.shape.hidden + first_unit + unit);
    }
  }
}

// This warp's 16 rows as A fragments.
template <class T, int kWidth>
__device__ void load_a(unsigned (&a)[kWidth / 16][4], const T* rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k)
    load_matrices(a[k], rows + at_chunk<kWidth>(warp * 16 + lane % 16, 2 * k + lane / 16));
}

// sums += A B for the 4 column tiles of 32 rows of w12.
template <class T, int kWidth>
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][4], const unsigned (&a)[4],
                                              const T* w, int k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    unsigned b[4];
    load_matrices(b, w + at_chunk<kWidth>((j + lane / 16) * 8 + lane % 8, 2 * k + lane / 8 % 2));
    multiply_add<T>(sums[j], a, b[0], b[1]);
    multiply_add<T>(sums[j + 1], a, b[2], b[3]);
  }
}

// sums += A B for the 4 column tiles of w3.
template <class T>
__device__ __forceinline__ void multiply_columns(float (&sums)[kTiles][4], const unsigned (&a)[4],
                                                 const T* w3, int k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    unsigned b[4];
    load_matrices_transposed(b, w3 + at_short_chunk(16 * k + lane % 16, j + lane / 16));
    multiply_add<T>(sums[j], a, b[0], b[1]);
    multiply_add<T>(sums[j + 1], a, b[2], b[3]);
  }
}

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + exp2_approx(-1.44269504f * x));
}

// The sums of row g (0) or g + 8 (1): 8 neighbouring units.
__device__ __forceinline__ void gather(float (&to)[8], const float (&sums)[kTiles][4], int row) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    to[2 * j] = sums[j][2 * row];
    to[2 * j + 1] = sums[j][2 * row + 1];
  }
}

template <class T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads, 2) swiglu_linear_kernel(Args<T> p) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<T, kWidth, kBackward>*>(memory);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kBlockRows;
  const int hidden = p.shape.hidden, lane = threadIdx.x % kWarp, quad = lane % 4;

  stage_rows<T, kWidth>(shared.x, p.x, first_row, p.shape.rows);
  if constexpr (kBackward) stage_rows<T, kWidth>(shared.dy, p.dy, first_row, p.shape.rows);
  close_copies();
  stage_weights<T, kWidth, kBackward>(shared.stages[0], p, 0);
  close_copies();
  wait_for_copies<1>();
  __syncthreads();
  constexpr int steps = kWidth / 16;
  unsigned x[steps][4], dy[kBackward ? steps : 1][4];
  load_a<T, kWidth>(x, shared.x);
  if constexpr (kBackward) load_a<T, kWidth>(dy, shared.dy);

  const std::int64_t my_row = first_row + threadIdx.x / kWarp * 16 + lane / 4;
  for (int unit = 0, at = 0; unit < hidden; unit += kUnits, at ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // these weights are there, and no one reads the others any more
    if (unit + kUnits < hidden)
      stage_weights<T, kWidth, kBackward>(shared.stages[at ^ 1], p, unit + kUnits);
    close_copies();

    const Stage<T, kWidth>& w = shared.stages[at];
    float a[kTiles][4] = {}, b[kTiles][4] = {}, dh[kBackward ? kTiles : 1][4] = {};
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      multiply_rows<T, kWidth>(a, x[k], w.w12, k);
      multiply_rows<T, kWidth>(b, x[k], w.w12 + kUnits * kWidth, k);
      if constexpr (kBackward) multiply_columns<T>(dh, dy[k], w.w3, k);
    }

    const int column = unit + 8 * quad;
    float bias_a[8], bias_b[8];
    load_wide(bias_a, p.bias + column);
    load_wide(bias_b, p.bias + hidden + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = my_row + 8 * half;
      float va[8], vb[8], vh[8];
      gather(va, a, half);
      gather(vb, b, half);
      if constexpr (kBackward) {
        float vd[8];
        gather(vd, dh, half);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float y = va[i] + bias_a[i], z = vb[i] + bias_b[i], s = sigmoid(y), gate = y * s;
          vh[i] = gate * z;
          va[i] = vd[i] * z * s * (1.0f + y * (1.0f - s));
          vb[i] = vd[i] * gate;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float y = va[i] + bias_a[i];
          vh[i] = y * sigmoid(y) * (vb[i] + bias_b[i]);
        }
      }
      if (row < p.shape.rows) {
        store_narrow(p.h + row * hidden + column, vh);
        if constexpr (kBackward) {
          store_narrow(p.dab + row * 2 * hidden + column, va);
          store_narrow(p.dab + (row * 2 + 1) * hidden + column, vb);
        }
      }
    }
  }
}

template <int kWidth, bool kBackward, class T>
void launch_width(CudaQueue& queue, const char* name, const Args<T>& p) {
  launch(queue, name, swiglu_linear_kernel<T, kWidth, kBackward>,
         dim3(static_cast<unsigned>(ceil_div(p.shape.rows, kBlockRows))), kThreads,
         sizeof(Shared<T, kWidth, kBackward>), p);
}

template <bool kBackward, class T>
void launch_any(CudaQueue& queue, const char* name, const Args<T>& p) {
  const SwigluLinearShape& s = p.shape;
  FM_CHECK(swiglu_linear_fits(s, dtype_of<T>()),
           "[swiglu_linear] width must be 64 or 128 and hidden a multiple of 32, got ", s.rows,
           " rows, width ", s.width, ", hidden ", s.hidden);
  if (s.width == 64) launch_width<64, kBackward>(queue, name, p);
  else launch_width<128, kBackward>(queue, name, p);
}

}  // namespace

bool swiglu_linear_fits(const SwigluLinearShape& s, DType type) {
  return (type == DType::f16 || type == DType::bf16) && s.rows > 0 &&
         (s.width == 64 || s.width == 128) && s.hidden > 0 && s.hidden % kUnits == 0;
}

template <class T>
void swiglu_linear_forward(CudaQueue& queue, const SwigluLinearForward<T>& p) {
  launch_any<false, T>(queue, "swiglu_linear_forward",
                       {.shape = p.shape,
                        .x = p.x,
                        .w12 = p.w12,
                        .bias = p.bias,
                        .w3 = nullptr,
                        .dy = nullptr,
                        .h = p.h,
                        .dab = nullptr});
}

template <class T>
void swiglu_linear_backward(CudaQueue& queue, const SwigluLinearBackward<T>& p) {
  launch_any<true, T>(queue, "swiglu_linear_backward",
                      {.shape = p.shape,
                       .x = p.x,
                       .w12 = p.w12,
                       .bias = p.bias,
                       .w3 = p.w3,
                       .dy = p.dy,
                       .h = p.h,
                       .dab = p.dab});
}

template void swiglu_linear_forward(CudaQueue&, const SwigluLinearForward<f16>&);
template void swiglu_linear_forward(CudaQueue&, const SwigluLinearForward<bf16>&);
template void swiglu_linear_backward(CudaQueue&, const SwigluLinearBackward<f16>&);
template void swiglu_linear_backward(CudaQueue&, const SwigluLinearBackward<bf16>&);

}  // namespace fm
