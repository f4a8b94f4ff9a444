// The bias and its gradient, where they are not part of a product.
#include "kernels/base/launch.cuh"
#include "kernels/base/vec.cuh"
#include "kernels/matmul/linear_shape.h"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

constexpr int kThreads = 256;

// Whether blocks of `elements` start at multiples of their size in every row and group.
template <class T>
bool wide_rows(const T* data, int width, std::int64_t stride, std::int64_t group, int groups,
               int elements) {
  return reinterpret_cast<std::uintptr_t>(data) % (elements * sizeof(T)) == 0 &&
         width % elements == 0 && stride % elements == 0 && (groups == 1 || group % elements == 0);
}

template <class T, class Y>
struct Broadcast {
  LinearShape shape;
  const T* bias;
  Y* y;
};

// A thread owns kWide neighbouring outputs of one row.
template <class T, class Y, int kWide>
__global__ void __launch_bounds__(kThreads) broadcast_kernel(Deferred<Broadcast<T, Y>> deferred) {
  const auto& [s, bias, y] = deferred.wait();
  const int per_group = s.out / kWide, per_row = s.groups * per_group;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= s.rows * per_row) return;
  const std::int64_t row = index / per_row;
  const int in_row = static_cast<int>(index % per_row);
  const int group = in_row / per_group, column = in_row % per_group * kWide;
  float value[kWide];
#pragma unroll
  for (int i = 0; i < kWide; ++i)
    value[i] = widen(bias[static_cast<std::int64_t>(group) * s.out + column + i]);
  store_narrow(y + row * s.y_stride + group * s.y_group + column, value);
}

template <class T>
struct ColumnParts {
  LinearShape shape;
  const T* dy;
  std::int64_t part_rows;
  float* parts;
};

// Two stages: blocks sum parts of the rows, then the parts are added in order.
// A block covers kColumnLanes * kWide columns, kThreads / kColumnLanes rows at a time; wide columns
// make 8 lanes a full 128-byte line.
template <class T, int kWide>
__global__ void __launch_bounds__(kThreads) column_parts_kernel(Deferred<ColumnParts<T>> deferred) {
  const auto& [s, dy, part_rows, parts] = deferred.wait();
  constexpr int kColumnLanes = kWide == 1 ? kWarp : 8;
  constexpr int kRowLanes = kThreads / kColumnLanes;
  constexpr int kColumns = kColumnLanes * kWide;
  static_assert(kColumns <= kThreads, "the last sum gives each thread one column");
  __shared__ float shared[kRowLanes][kColumns];
  const int lane = threadIdx.x % kColumnLanes, row_lane = threadIdx.x / kColumnLanes;
  const int first_column = blockIdx.x * kColumns, column = first_column + lane * kWide;
  const std::int64_t part = blockIdx.y, group = blockIdx.z;

  float sum[kWide] = {};
  if (column < s.out) {
    const T* from = dy + group * s.y_group + column;
    const std::int64_t begin = part * part_rows;
    const std::int64_t end = min(begin + part_rows, s.rows);
#pragma unroll 4
    for (std::int64_t row = begin + row_lane; row < end; row += kRowLanes) {
      float value[kWide];
      load_wide(value, from + row * s.y_stride);
#pragma unroll
      for (int i = 0; i < kWide; ++i) sum[i] += value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) shared[row_lane][lane * kWide + i] = sum[i];
  __syncthreads();
  const int own = threadIdx.x;
  if (own < kColumns && first_column + own < s.out) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kRowLanes; ++i) total += shared[i][own];
    parts[(part * s.groups + group) * s.out + first_column + own] = total;
  }
}

constexpr int kAddLanes = 32;

struct AddParts {
  const float* parts;
  int count;
  std::int64_t columns;
  float* to;
};

// to [columns] = sum of the rows of parts [count, columns].
__global__ void __launch_bounds__(kAddLanes* kAddLanes)
    add_parts_kernel(Deferred<AddParts> deferred) {
  const auto& [parts, count, columns, to] = deferred.wait();
  __shared__ float shared[kAddLanes][kAddLanes];
  const int lane = threadIdx.x % kAddLanes, part_lane = threadIdx.x / kAddLanes;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kAddLanes + lane;
  float sum = 0;
  if (column < columns)
    for (int part = part_lane; part < count; part += kAddLanes)
      sum += parts[part * columns + column];
  shared[part_lane][lane] = sum;
  __syncthreads();
  if (part_lane == 0 && column < columns) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kAddLanes; ++i) total += shared[i][lane];
    to[column] = total;
  }
}

template <class T, class Y, int kWide>
void launch_broadcast(CudaQueue& queue, const LinearShape& s, const T* bias, Y* y) {
  const std::int64_t count = s.rows * s.groups * (s.out / kWide);
  launch(queue, "linear_bias", broadcast_kernel<T, Y, kWide>,
         static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0,
         Broadcast<T, Y>{s, bias, y});
}

template <class T, int kWide>
void launch_column_parts(CudaQueue& queue, const LinearShape& s, const T* dy, float* parts) {
  constexpr int kColumns = (kWide == 1 ? kWarp : 8) * kWide;
  const RowSplit split = cuda_column_split(s);
  const dim3 grid(static_cast<unsigned>(ceil_div(s.out, kColumns)),
                  static_cast<unsigned>(split.count), static_cast<unsigned>(s.groups));
  launch(queue, "linear_column_parts", column_parts_kernel<T, kWide>, grid, kThreads, 0,
         ColumnParts<T>{s, dy, split.rows, parts});
}

}  // namespace

template <class T, class Y>
void broadcast_bias(CudaQueue& queue, const LinearShape& s, const T* bias, Y* y) {
  constexpr int kWide = 16 / sizeof(Y);
  if (wide_rows(y, s.out, s.y_stride, s.y_group, s.groups, kWide))
    launch_broadcast<T, Y, kWide>(queue, s, bias, y);
  else launch_broadcast<T, Y, 1>(queue, s, bias, y);
}

template <class T>
void column_sums(CudaQueue& queue, const LinearShape& s, const T* dy, float* dbias, float* parts) {
  constexpr int kWide = 16 / sizeof(T);
  if (wide_rows(dy, s.out, s.y_stride, s.y_group, s.groups, kWide))
    launch_column_parts<T, kWide>(queue, s, dy, parts);
  else launch_column_parts<T, 1>(queue, s, dy, parts);
  const std::int64_t columns = std::int64_t{s.groups} * s.out;
  launch(queue, "linear_column_sums", add_parts_kernel,
         static_cast<unsigned>(ceil_div(columns, kAddLanes)), kAddLanes * kAddLanes, 0,
         AddParts{parts, static_cast<int>(cuda_column_split(s).count), columns, dbias});
}

template void broadcast_bias(CudaQueue&, const LinearShape&, const float*, float*);
template void broadcast_bias(CudaQueue&, const LinearShape&, const f16*, f16*);
template void broadcast_bias(CudaQueue&, const LinearShape&, const f16*, float*);
template void broadcast_bias(CudaQueue&, const LinearShape&, const bf16*, bf16*);
template void broadcast_bias(CudaQueue&, const LinearShape&, const bf16*, float*);
template void column_sums(CudaQueue&, const LinearShape&, const float*, float*, float*);
template void column_sums(CudaQueue&, const LinearShape&, const f16*, float*, float*);
template void column_sums(CudaQueue&, const LinearShape&, const bf16*, float*, float*);

}  // namespace fm
