#include "kernels/base/approx.cuh"
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
  T bias[2 * kUnits];
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
    copy_async(to + at_chunk<kWidth>(row, chunk),
               from + (there ? first + row : 0) * kWidth + chunk * kChunk, there);
  }
}

// A thread's share of copying the weights of 32 units. All that depends on the thread is worked out
// once: index arithmetic in the walk costs as much as the products.
template <class T, int kWidth, bool kBackward>
class WeightCopier {
 public:
  __device__ explicit WeightCopier(const Args<T>& p) : hidden_(p.shape.hidden) {
    if (threadIdx.x < kBiasChunks) {
      const int half = threadIdx.x / (kBiasChunks / 2), place = threadIdx.x % (kBiasChunks / 2);
      bias_ = p.bias + half * hidden_ + place * kChunk;
    }
    const int chunk = threadIdx.x % kPerRow;
    row_ = threadIdx.x / kPerRow;
    w12_ = p.w12 + row_ * kWidth + chunk * kChunk;
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      to_w12_[i] = at_chunk<kWidth>(column_of((row_ + i * kRows) % kUnits), chunk);
    if constexpr (kBackward) {
      const int unit = threadIdx.x % kPairs * 2, column = column_of(unit);
      pair_row_ = threadIdx.x / kPairs;
      w3_ = p.w3 + std::int64_t{pair_row_} * hidden_ + unit;
      // 12 rows on, the chunk's place differs by 2, 24 rows on it is the same.
      for (int odd = 0; odd < 2; ++odd)
        to_w3_[odd] = at_short_chunk(pair_row_ + odd * kPairRows, column / 8) + column % 8;
    }
  }

  __device__ void start(Stage<T, kWidth>& to, int first_unit) const {
    if (threadIdx.x < kBiasChunks)
      copy_async(to.bias + threadIdx.x * kChunk, bias_ + first_unit, true);
    const T* from = w12_ + std::int64_t{first_unit} * kWidth;
    const std::int64_t to_b = std::int64_t{hidden_} * kWidth;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (row_ + i * kRows >= kUnits) break;
      copy_async(to.w12 + to_w12_[i], from + i * kRows * kWidth, true);
      copy_async(to.w12 + kUnits * kWidth + to_w12_[i], from + i * kRows * kWidth + to_b, true);
    }
    if constexpr (kBackward) {
      const T* pairs = w3_ + first_unit;
#pragma unroll
      for (int i = 0; i * kPairRows < kWidth; ++i) {
        if (pair_row_ + i * kPairRows >= kWidth) break;
        copy_async_4(to.w3 + to_w3_[i % 2] + i / 2 * 2 * kPairRows * kUnits, pairs);
        pairs += kPairRows * hidden_;
      }
    }
  }

 private:
  static constexpr int kBiasChunks = 2 * kUnits / kChunk;
  static constexpr int kPerRow = kWidth / kChunk, kRows = kThreads / kPerRow;
  static constexpr int kPasses = (kUnits + kRows - 1) / kRows;
  static constexpr int kPairs = kUnits / 2, kPairRows = kThreads / kPairs;
  static_assert(kPairRows % 4 == 0 && kPairRows / 2 % 4 == 2);

  int hidden_, row_, pair_row_;
  int to_w12_[kPasses], to_w3_[2];
  const T *w12_, *w3_, *bias_;
};

// This warp's 16 rows as A fragments.
template <class T, int kWidth>
__device__ void load_a(unsigned (&a)[kWidth / 16][4], const T* rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k)
    load_matrices<false>(a[k], rows + at_chunk<kWidth>(warp * 16 + lane % 16, 2 * k + lane / 16));
}

// sums += A B for the 4 column tiles of 32 rows of w12.
template <class T, int kWidth>
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][4], const unsigned (&a)[4],
                                              const T* w, int k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    unsigned b[4];
    load_matrices<false>(
        b, w + at_chunk<kWidth>((j + lane / 16) * 8 + lane % 8, 2 * k + lane / 8 % 2));
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
    load_matrices<true>(b, w3 + at_short_chunk(16 * k + lane % 16, j + lane / 16));
    multiply_add<T>(sums[j], a, b[0], b[1]);
    multiply_add<T>(sums[j + 1], a, b[2], b[3]);
  }
}

// Sums that start from the bias of this thread's 8 units.
template <class T>
__device__ __forceinline__ void start_from(float (&sums)[kTiles][4], const T* bias) {
  float b[8];
  load_wide(b, bias);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    sums[j][0] = sums[j][2] = b[2 * j];
    sums[j][1] = sums[j][3] = b[2 * j + 1];
  }
}

template <class T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads, 2) swiglu_linear_kernel(Args<T> p) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<T, kWidth, kBackward>*>(memory);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kBlockRows;
  const int hidden = p.shape.hidden, lane = threadIdx.x % kWarp;

  stage_rows<T, kWidth>(shared.x, p.x, first_row, p.shape.rows);
  if constexpr (kBackward) stage_rows<T, kWidth>(shared.dy, p.dy, first_row, p.shape.rows);
  commit_copies();
  const WeightCopier<T, kWidth, kBackward> copier(p);
  copier.start(shared.stages[0], 0);
  commit_copies();
  wait_copies<1>();
  __syncthreads();
  constexpr int steps = kWidth / 16;
  unsigned x[steps][4], dy[kBackward ? steps : 1][4];
  load_a<T, kWidth>(x, shared.x);
  if constexpr (kBackward) load_a<T, kWidth>(dy, shared.dy);

  const std::int64_t row = first_row + threadIdx.x / kWarp * 16 + lane / 4;
  const int first_column = 8 * (lane % 4);
  for (int unit = 0, at = 0; unit < hidden; unit += kUnits, at ^= 1) {
    wait_copies<0>();
    __syncthreads();  // these weights are there, and no one reads the others any more
    if (unit + kUnits < hidden) copier.start(shared.stages[at ^ 1], unit + kUnits);
    commit_copies();

    const Stage<T, kWidth>& w = shared.stages[at];
    const int column = unit + first_column;
    float a[kTiles][4], b[kTiles][4], dh[kBackward ? kTiles : 1][4] = {};
    start_from(a, w.bias + first_column);
    start_from(b, w.bias + kUnits + first_column);
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      multiply_rows<T, kWidth>(a, x[k], w.w12, k);
      multiply_rows<T, kWidth>(b, x[k], w.w12 + kUnits * kWidth, k);
      if constexpr (kBackward) multiply_columns<T>(dh, dy[k], w.w3, k);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows g and g + 8
      float h[8], da[8], db[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float y = a[i / 2][2 * half + i % 2], z = b[i / 2][2 * half + i % 2];
        const float s = sigmoid_approx(y), gate = y * s;
        h[i] = gate * z;
        if constexpr (kBackward) {
          const float d = dh[i / 2][2 * half + i % 2];
          da[i] = d * z * fmaf(gate, 1.0f - s, s);
          db[i] = d * gate;
        }
      }
      const std::int64_t r = row + 8 * half;
      if (r < p.shape.rows) {
        store_narrow(p.h + r * hidden + column, h);
        if constexpr (kBackward) {
          store_narrow(p.dab + r * 2 * hidden + column, da);
          store_narrow(p.dab + (r * 2 + 1) * hidden + column, db);
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
