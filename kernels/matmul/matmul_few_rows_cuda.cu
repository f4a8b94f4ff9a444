// y = x w^T + bias for few rows, where what counts is latency: one image's tokens.
#include "kernels/base/few_rows.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

// Where this is faster than cuBLASLt: measured on an H100, 2.3 us against 2.6 for a small layer of
// 196 rows, even at 400 to 800 rows, 3.1 against 2.9 with three blocks a multiprocessor.
constexpr std::int64_t kMostRows = 512;
constexpr int kMostBlocks = 2;  // a multiprocessor

template <class T, class Y>
struct FewRowsLinear {
  LinearForward<T, Y> layer;  // its shape checked
  bool wide;                  // four neighbours of y can be one access
};

// A block makes one tile of y, blockIdx = (row tile, column tile, group).
template <class T, class Y, int kWarps, int kSteps>
__global__ void __launch_bounds__(kWarps* kWarp)
    few_rows_kernel(Deferred<FewRowsLinear<T, Y>> deferred) {
  __shared__ FewRowsSums<kWarps> sums;
  const auto& [p, wide] = deferred.wait();
  const LinearShape& s = p.shape;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kFewRows;
  const int first_column = static_cast<int>(blockIdx.y) * kFewColumns, group = blockIdx.z;
  const T* x = p.x + group * s.x_group;
  const T* w = p.w + static_cast<std::int64_t>(group) * s.out * s.in;
  // Rows and columns past the end read the last one again, and are not stored.
  const auto eight = [&](const T* row, int k) {
    return k < s.in ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
  };
  multiply_few_rows<T, kWarps, kSteps>(
      sums, [&](int i, int k) { return eight(x + min(first_row + i, s.rows - 1) * s.x_stride, k); },
      [&](int j, int k) {
        return eight(w + static_cast<std::int64_t>(min(first_column + j, s.out - 1)) * s.in, k);
      },
      [](int, const uint4&) {});
  __syncthreads();

  constexpr int kQuads = kFewColumns / 4;
#pragma unroll
  for (int e = threadIdx.x; e < kFewRows * kQuads; e += kWarps * kWarp) {
    const int i = e / kQuads, j = e % kQuads * 4;
    const std::int64_t row = first_row + i;
    const int column = first_column + j, left = s.out - column;
    if (row >= s.rows || left <= 0) continue;
    const float4 sum = sums(i, j);
    float value[4] = {sum.x, sum.y, sum.z, sum.w};
    if (p.bias) {
      const T* bias = p.bias + static_cast<std::int64_t>(group) * s.out + column;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < left) value[c] += widen(bias[c]);
    }
    Y* y = p.y + row * s.y_stride + group * s.y_group + column;
    if (wide) {
      store_narrow(y, value);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < left) y[c] = narrow<Y>(value[c]);
    }
  }
}

// Whether groups of `elements` lie at multiples of their size in every row and group.
template <class T>
bool aligned(const T* data, std::int64_t stride, std::int64_t group, int groups, int elements) {
  return reinterpret_cast<std::uintptr_t>(data) % (elements * sizeof(T)) == 0 &&
         stride % elements == 0 && (groups == 1 || group % elements == 0);
}

}  // namespace

template <class T, class Y>
bool linear_few_rows(CudaQueue& queue, const LinearForward<T, Y>& p, const LinearShape& s) {
  constexpr int kEight = 8;
  if (s.rows > kMostRows || s.in % kEight != 0 ||
      !aligned(p.x, s.x_stride, s.x_group, s.groups, kEight) ||
      !aligned(p.w, s.in, std::int64_t{s.out} * s.in, s.groups, kEight))
    return false;
  FewRowsLinear<T, Y> args{p, s.out % 4 == 0 && aligned(p.y, s.y_stride, s.y_group, s.groups, 4)};
  args.layer.shape = s;
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, kFewRows)),
                  static_cast<unsigned>(ceil_div(s.out, kFewColumns)),
                  static_cast<unsigned>(s.groups));
  if (std::int64_t{grid.x} * grid.y * grid.z > kMostBlocks * queue.limits.multiprocessors)
    return false;
  return with_few_rows_depth(s.in, [&]<int kWarps, int kSteps>() {
    launch(queue, "linear_few_rows", few_rows_kernel<T, Y, kWarps, kSteps>, grid, kWarps * kWarp, 0,
           args);
  });
}

template bool linear_few_rows(CudaQueue&, const LinearForward<f16, f16>&, const LinearShape&);
template bool linear_few_rows(CudaQueue&, const LinearForward<f16, float>&, const LinearShape&);
template bool linear_few_rows(CudaQueue&, const LinearForward<bf16, bf16>&, const LinearShape&);
template bool linear_few_rows(CudaQueue&, const LinearForward<bf16, float>&, const LinearShape&);

}  // namespace fm
