#include "kernels/base/approx.cuh"
#include "kernels/base/few_rows.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/swiglu/swiglu_few_rows.h"

namespace fm {
namespace {

constexpr std::int64_t kMostRows = 512;
constexpr int kMostWidth = 512;
constexpr int kUnits = kFewColumns / 2;  // of h a block makes: its tile is their a beside their b

// blockIdx = (row tile, tile of units).
template <class T, int kWarps, int kSteps>
__global__ void __launch_bounds__(kWarps* kWarp)
    few_rows_kernel(Deferred<SwigluFewRows<T>> deferred) {
  __shared__ FewRowsSums<kWarps> sums;
  const SwigluFewRows<T>& p = deferred.wait();
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kFewRows;
  const int first_unit = static_cast<int>(blockIdx.y) * kUnits;
  // Rows and units past the end read the last one again, and are not stored.
  const auto eight = [&](const T* row, int k) {
    return k < p.width ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
  };
  multiply_few_rows<T, kWarps, kSteps>(
      sums, [&](int i, int k) { return eight(p.x + min(first_row + i, p.rows - 1) * p.width, k); },
      [&](int j, int k) {
        const int unit = min(first_unit + j % kUnits, p.hidden - 1);
        const std::int64_t row = unit + (j < kUnits ? 0 : p.hidden);
        return eight(p.w12 + row * p.width, k);
      },
      [](int, const uint4&) {});
  __syncthreads();

  constexpr int kQuads = kUnits / 4;
  for (int e = threadIdx.x; e < kFewRows * kQuads; e += kWarps * kWarp) {
    const int i = e / kQuads, j = e % kQuads * 4;
    const std::int64_t row = first_row + i;
    const int unit = first_unit + j;
    if (row >= p.rows || unit >= p.hidden) continue;
    const float4 sum_a = sums(i, j), sum_b = sums(i, j + kUnits);
    const float a[4] = {sum_a.x, sum_a.y, sum_a.z, sum_a.w};
    const float b[4] = {sum_b.x, sum_b.y, sum_b.z, sum_b.w};
    float bias_a[4], bias_b[4], h[4];
    load_wide(bias_a, p.bias + unit);
    load_wide(bias_b, p.bias + p.hidden + unit);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float gate = a[c] + bias_a[c];
      h[c] = gate * sigmoid_approx(gate) * (b[c] + bias_b[c]);
    }
    store_narrow(p.h + row * p.hidden + unit, h);
  }
}

}  // namespace

bool swiglu_few_rows_fits(std::int64_t rows, int width, int hidden, DType type) {
  return (type == DType::f16 || type == DType::bf16) && rows > 0 && rows <= kMostRows &&
         width > 0 && width % 8 == 0 && width <= kMostWidth && hidden > 0 && hidden % 4 == 0;
}

template <class T>
void swiglu_few_rows(CudaQueue& queue, const SwigluFewRows<T>& p) {
  FM_CHECK(swiglu_few_rows_fits(p.rows, p.width, p.hidden, dtype_of<T>()),
           "[swiglu_few_rows] at most ", kMostRows, " rows of a multiple of 8, at most ",
           kMostWidth, ", to a multiple of 4, got ", p.rows, ", ", p.width, " and ", p.hidden);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.rows, kFewRows)),
                  static_cast<unsigned>(ceil_div(p.hidden, kUnits)));
  with_few_rows_depth(p.width, [&]<int kWarps, int kSteps>() {
    launch(queue, "swiglu_few_rows", few_rows_kernel<T, kWarps, kSteps>, grid, kWarps * kWarp, 0,
           p);
  });
}

template void swiglu_few_rows(CudaQueue&, const SwigluFewRows<f16>&);
template void swiglu_few_rows(CudaQueue&, const SwigluFewRows<bf16>&);

}  // namespace fm
