// rmsnorm_linear's forward product for few rows, where what counts is latency: one image's tokens.
#include "kernels/base/few_rows.cuh"
#include "kernels/base/reduce.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/rmsnorm_linear/rmsnorm_linear_fused.cuh"

namespace fm {
namespace {

// Rows up to which this is faster than the kernel with large tiles.
constexpr std::int64_t kMostRows = 512;

// A block makes one tile of y, blockIdx = (row tile, column tile). It passes all of its rows, and
// so finds their r, too; the first column's blocks write it.
template <class T, int kWarps, int kSteps>
__global__ void __launch_bounds__(kWarps* kWarp)
    few_rows_kernel(Deferred<RmsNormLinearForward<T>> deferred) {
  __shared__ FewRowsSums<kWarps> sums;
  __shared__ float row_squares[kWarps][kFewRows];
  const RmsNormLinearForward<T>& p = deferred.wait();
  const int in = p.shape.in, out = p.shape.out, lane = threadIdx.x % kWarp;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kFewRows;
  const int first_column = static_cast<int>(blockIdx.y) * kFewColumns;
  // Rows and columns past the end read the last one again, and are not stored.
  const auto eight = [&](const T* row, int k) {
    return k < in ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
  };
  float squares[kFewRows / 8] = {};
  multiply_few_rows<T, kWarps, kSteps>(
      sums, [&](int i, int k) { return eight(p.x + min(first_row + i, p.shape.rows - 1) * in, k); },
      [&](int j, int k) {
        return eight(p.v + static_cast<std::int64_t>(min(first_column + j, out - 1)) * in, k);
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
    if (column == 0) p.r[row] = r;
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

template <class T>
bool aligned(const T* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

}  // namespace

template <class T>
bool rmsnorm_linear_forward_few_rows(CudaQueue& queue, const RmsNormLinearForward<T>& p) {
  if (p.shape.rows > kMostRows || p.shape.in % 8 != 0 || !aligned(p.x) || !aligned(p.v) ||
      !aligned(p.y))
    return false;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.shape.rows, kFewRows)),
                  static_cast<unsigned>(ceil_div(p.shape.out, kFewColumns)));
  return with_few_rows_depth(p.shape.in, [&]<int kWarps, int kSteps>() {
    launch(queue, "rmsnorm_linear_few_rows", few_rows_kernel<T, kWarps, kSteps>, grid,
           kWarps * kWarp, 0, p);
  });
}

template bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<f16>&);
template bool rmsnorm_linear_forward_few_rows(CudaQueue&, const RmsNormLinearForward<bf16>&);

}  // namespace fm
