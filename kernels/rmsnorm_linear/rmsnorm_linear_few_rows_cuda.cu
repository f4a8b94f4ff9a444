// rmsnorm_linear's forward product for few rows, where what counts is latency: one image's tokens.
#include <algorithm>
#include <initializer_list>

#include "kernels/base/few_rows.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

namespace fm {
namespace {

// Rows up to which this is faster than the kernel with large tiles.
constexpr std::int64_t kMostRows = 512;

// Eight elements of V from `at` on: row * in + k. Without a V they are made from W each time, which
// costs less than the launch that folds.
template <class T>
__device__ __forceinline__ uint4 eight_of_v(const RmsNormLinearForward<T>& p, std::int64_t at,
                                            int) {
  return *reinterpret_cast<const uint4*>(p.v + at);
}
template <class T>
__device__ __forceinline__ uint4 eight_of_v(const RmsNormLinearInference<T>& p, std::int64_t at,
                                            int k) {
  float w[2][4], weight[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    load_wide(w[half], p.w + at + half * 4);
    load_wide(weight[half], p.weight + k + half * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[half][i] *= weight[half][i];
  }
  return {narrow_pair<T>(w[0][0], w[0][1]), narrow_pair<T>(w[0][2], w[0][3]),
          narrow_pair<T>(w[1][0], w[1][1]), narrow_pair<T>(w[1][2], w[1][3])};
}

template <class T>
__device__ __forceinline__ void keep_r(const RmsNormLinearForward<T>& p, std::int64_t row,
                                       float r) {
  p.r[row] = r;
}
template <class T>
__device__ __forceinline__ void keep_r(const RmsNormLinearInference<T>&, std::int64_t, float) {}

// A block makes one tile of y, blockIdx = (row tile, column tile). It passes all of its rows, and
// so finds their r, too; the first column's blocks write it. P: RmsNormLinearForward or -Inference.
template <class T, int kWarps, int kSteps, class P>
__global__ void __launch_bounds__(kWarps* kWarp) few_rows_kernel(Deferred<P> deferred) {
  __shared__ FewRowsSums<kWarps> sums;
  __shared__ float row_squares[kWarps][kFewRows];
  const P& p = deferred.wait();
  const int in = p.shape.in, out = p.shape.out, lane = threadIdx.x % kWarp;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kFewRows;
  const int first_column = static_cast<int>(blockIdx.y) * kFewColumns;
  // Rows and columns past the end read the last one again, and are not stored.
  float squares[kFewRows / 8] = {};
  multiply_few_rows<T, kWarps, kSteps>(
      sums,
      [&](int i, int k) {
        const T* row = p.x + min(first_row + i, p.shape.rows - 1) * in;
        return k < in ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
      },
      [&](int j, int k) {
        const std::int64_t row = min(first_column + j, out - 1);
        return k < in ? eight_of_v(p, row * in + k, k) : uint4{};
      },
      [&](int i, const uint4& elements) {
        for (const unsigned word : {elements.x, elements.y, elements.z, elements.w}) {
          const float2 pair = widen_pair<T>(word);
          squares[i / 8] = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, squares[i / 8]));
        }
      });
#pragma unroll
  for (int i = 0; i < kFewRows / 8; ++i) {
    const float sum = warp_sum(squares[i], 4);
    if (lane % 4 == 0) row_squares[threadIdx.x / kWarp][i * 8 + lane / 4] = sum;
  }
  __syncthreads();

  constexpr int kQuads = kFewColumns / 4;
#pragma unroll
  for (int e = threadIdx.x; e < kFewRows * kQuads; e += kWarps * kWarp) {
    const int i = e / kQuads, j = e % kQuads * 4;
    const std::int64_t row = first_row + i;
    const int column = first_column + j, left = out - column;
    if (row >= p.shape.rows || left <= 0) continue;
    float square = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) square += row_squares[warp][i];
    const float r = rsqrtf(square / static_cast<float>(in) + static_cast<float>(p.shape.eps));
    if (column == 0) keep_r(p, row, r);
    const float4 sum = sums(i, j);
    const float value[4] = {r * sum.x, r * sum.y, r * sum.z, r * sum.w};
    T* y = p.y + row * out + column;
    if (out % 4 == 0) {
      store_narrow(y, value);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < left) y[c] = narrow<T>(value[c]);
    }
  }
}

bool aligned(std::initializer_list<const void*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(), [](const void* array) {
    return reinterpret_cast<std::uintptr_t>(array) % 16 == 0;
  });
}

template <class T, class P>
bool run_few_rows(CudaQueue& queue, const P& p, std::initializer_list<const void*> arrays) {
  if (p.shape.rows > kMostRows || p.shape.in % 8 != 0 || !aligned(arrays)) return false;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.shape.rows, kFewRows)),
                  static_cast<unsigned>(ceil_div(p.shape.out, kFewColumns)));
  return with_few_rows_depth(p.shape.in, [&]<int kWarps, int kSteps>() {
    launch(queue, "rmsnorm_linear_few_rows", few_rows_kernel<T, kWarps, kSteps, P>, grid,
           kWarps * kWarp, 0, p);
  });
}

}  // namespace

template <class T>
bool rmsnorm_linear_forward_few_rows(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  return !p.shape.gated() && run_few_rows<T>(queue, p, {p.x, p.v, p.y});
}

template <class T>
bool rmsnorm_linear_inference(CudaQueue& queue, const RmsNormLinearInference<T>& p) {
  rmsnorm_linear_check(p.shape);
  if constexpr (sizeof(T) == 2) return run_few_rows<T>(queue, p, {p.x, p.w, p.weight, p.y});
  else return false;
}

template bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<f16>&);
template bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<bf16>&);
template bool rmsnorm_linear_inference(CudaQueue&, const RmsNormLinearInference<float>&);
template bool rmsnorm_linear_inference(CudaQueue&, const RmsNormLinearInference<f16>&);
template bool rmsnorm_linear_inference(CudaQueue&, const RmsNormLinearInference<bf16>&);

}  // namespace fm
