#include "kernels/base/column_sums.cuh"
#include "kernels/linear_rmsnorm/linear_rmsnorm_fused.cuh"
#include "kernels/matmul/matmul_mma.cuh"
#include "kernels/rmsnorm/rmsnorm_weight_sums.cuh"

// Bound by memory: at the paper's shape 184 MB where dx is added to. While a warp works on its 16
// rows, raw and dy of its next ones are on the way, and so are 256 columns of dx: 16 KB a warp,
// 130 KB a multiprocessor. The weights' gradients stay in registers to the end.

namespace fm {
namespace {

using namespace linear_rmsnorm;

constexpr int kMostWarps = 8;
constexpr int kLeastTiles = 24;  // on an H100 25 000 rows of two groups

// A staged row of raw or dy, in octets: four more than a multiple of eight, so that eight lanes, of
// two rows, meet different banks.
template <int kQuads>
constexpr int kPitch = (kQuads / 2 * 2 + (kQuads % 2 ? 3 : 1)) * 4;
template <int kQuads>
constexpr int kArray = kTileRows* kPitch<kQuads>* kOctet;  // raw, and behind it dy
template <int kQuads, class T>
constexpr int kWarpElements = 2 * kArray<kQuads> + Stages<T>::kCount* Stages<T>::kElements;

// In W's panels, too, 32 columns become four times 8 that stand for other ones, as a quad's do: a
// lane's sums are then 8 columns of dx side by side. A thread changes the places of 4 x 4 pairs.
template <int kQuads, class T>
__device__ __forceinline__ void permute_columns(T* w, int in) {
  for (int i = threadIdx.x; i < kSlots<kQuads> * (in / 32); i += blockDim.x) {
    const int slot = i % kSlots<kQuads>, half = i / kSlots<kQuads>;
    T* const panel = w + half / 2 * kSlots<kQuads> * kPanel;
    uint4 from[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      from[j] = *reinterpret_cast<const uint4*>(panel_chunk(panel, slot, half % 2 * 4 + j));
    const uint4 to[4] = {{from[0].x, from[1].x, from[2].x, from[3].x},
                         {from[0].y, from[1].y, from[2].y, from[3].y},
                         {from[0].z, from[1].z, from[2].z, from[3].z},
                         {from[0].w, from[1].w, from[2].w, from[3].w}};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      *reinterpret_cast<uint4*>(panel_chunk(panel, slot, half % 2 * 4 + j)) = to[j];
  }
}

// draw of 16 rows as operands A, two a quad, and a lane's pairs of the octet alone. Of row i of a
// lane's two, octet q of a quad is in [0][i], [0][i + 2], [1][i], [1][i + 2].
template <int kQuads>
struct Rows {
  unsigned quad[kQuads][2][4];
  unsigned alone[2];

  // `none` is 0, which the compiler does not know: registers that are both an operand's and a
  // store's would be moved before every product, 730 instructions a tile.
  __device__ __forceinline__ uint4 octet(int i, int q, unsigned none) const {
    const unsigned(&a)[2][4] = quad[q];
    return make_uint4(a[0][i] ^ none, a[0][i + 2] ^ none, a[1][i] ^ none, a[1][i + 2] ^ none);
  }
};

// What a lane adds to the weights' gradients.
template <int kQuads>
struct WeightSums {
  float quad[kQuads][kOctet] = {};
  float alone[2] = {};
};

// One row's draw, from raw and dy as they are staged.
template <int kQuads, class T>
__device__ __forceinline__ void norm_row(Rows<kQuads>& rows, WeightSums<kQuads>& sums, int i,
                                         const T* raw, const T* dy, const Columns& columns,
                                         const Octets<kQuads>& octets, const float* weight) {
  const int q = threadIdx.x % 4;
  const int alone = octets.alone() * kOctet + q * 2;
  const float2 last_x = widen_pair<T>(*reinterpret_cast<const unsigned*>(raw + alone));
  const float2 last_g = widen_pair<T>(*reinterpret_cast<const unsigned*>(dy + alone));
  const float2 last_w = *reinterpret_cast<const float2*>(weight + alone);
  const float2 last_wg = make_float2(last_w.x * last_g.x, last_w.y * last_g.y);
  PerSegment squares, products;
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    const int column = octets.of(quad, q) * kOctet;
    float x[kOctet], g[kOctet], square = 0, product = 0;
    load_wide(x, raw + column);
    load_wide(g, dy + column);
#pragma unroll
    for (int c = 0; c < kOctet; c += 4) {
      float w[4];
      load_wide(w, weight + column + c);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        square = fmaf(x[c + d], x[c + d], square);
        product = fmaf(w[d] * g[c + d], x[c + d], product);
      }
    }
    squares.add(columns.segment(column), square);
    products.add(columns.segment(column), product);
  }
  squares.add(columns.segment(alone), fmaf(last_x.x, last_x.x, last_x.y * last_x.y));
  products.add(columns.segment(alone), fmaf(last_wg.x, last_x.x, last_wg.y * last_x.y));
  squares.sum_lanes();
  products.sum_lanes();
  // draw = weight (dy r) - raw r^2 mean(weight dy xh)
  PerSegment r, shift;
#pragma unroll
  for (int s = 0; s < kSegments; ++s) {
    r.at[s] = rsqrtf(fmaf(squares.at[s], columns.inverse[s], columns.eps));
    const float xh = products.at[s] * columns.inverse[s] * r.at[s];
    shift.at[s] = -xh * (r.at[s] * r.at[s]);
  }
  // Both are read again: held, they and the weights would take 100 registers.
  __syncwarp();
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    const int column = octets.of(quad, q) * kOctet, segment = columns.segment(column);
    const float scale = r.of(segment), down = shift.of(segment);
    float x[kOctet], g[kOctet];
    load_wide(x, raw + column);
    load_wide(g, dy + column);
#pragma unroll
    for (int c = 0; c < kOctet; c += 4) {
      float w[4];
      load_wide(w, weight + column + c);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        const float scaled = g[c + d] * scale;
        sums.quad[quad][c + d] = fmaf(scaled, x[c + d], sums.quad[quad][c + d]);
        x[c + d] = fmaf(x[c + d], down, scaled * w[d]);
      }
    }
#pragma unroll
    for (int c = 0; c < kOctet; c += 2)
      rows.quad[quad][c / 4][i + c % 4] = narrow_pair<T>(x[c], x[c + 1]);
  }
  const int segment = columns.segment(alone);
  const float scale = r.of(segment), down = shift.of(segment);
  const float2 scaled = make_float2(last_g.x * scale, last_g.y * scale);
  sums.alone[0] = fmaf(scaled.x, last_x.x, sums.alone[0]);
  sums.alone[1] = fmaf(scaled.y, last_x.y, sums.alone[1]);
  rows.alone[i] = narrow_pair<T>(fmaf(last_x.x, down, scaled.x * last_w.x),
                                 fmaf(last_x.y, down, scaled.y * last_w.y));
}

__device__ __forceinline__ uint4 load_shared(unsigned from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

// Where a lane's rows of 8 x 8 matrices of W's first panel lie; the 32 other columns of a panel are
// 64 bytes to and fro, the 16 other ones of those 32 bytes.
struct MatrixAddress {
  unsigned quads, alone;

  template <int kQuads, class T>
  __device__ __forceinline__ static MatrixAddress of(T* w) {
    const int lane = threadIdx.x % kWarp;
    return {shared_address(panel_chunk(w, lane % 16, lane / 16)),
            shared_address(panel_chunk(w, kQuads * 32 + lane % 8, lane / 8))};
  }
};

// sums += draw W for 32 columns: half a panel's, `panel` bytes behind the first.
template <int kQuads, class T>
__device__ __forceinline__ void multiply(float (&sums)[4][4], const Rows<kQuads>& rows,
                                         const MatrixAddress& address, int panel, int half) {
  unsigned b[4];
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad)
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        load_transposed(b, (address.quads ^ (half * 64 + pair * 32)) + panel +
                               (quad * 32 + k * 16) * kPanel * sizeof(T));
        multiply_add<T>(sums[pair * 2], rows.quad[quad][k], b[0], b[1]);
        multiply_add<T>(sums[pair * 2 + 1], rows.quad[quad][k], b[2], b[3]);
      }
  const unsigned a[4] = {rows.alone[0], rows.alone[1], 0, 0};
  load_transposed(b, (address.alone ^ half * 64) + panel);
#pragma unroll
  for (int j = 0; j < 4; ++j) multiply_add<T>(sums[j], a, b[j], 0u);
}

// The block's warps' sums of the weights' gradients, added up and written to `partial`, a row of
// all segments' weights. `shared` holds a row of kSlots a warp.
template <int kQuads>
__device__ __forceinline__ void store_weight_sums(const WeightSums<kQuads>& sums, float* shared,
                                                  float* partial, int group, const Columns& columns,
                                                  const Octets<kQuads>& octets) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, q = threadIdx.x % 4;
  const bool first = threadIdx.x % kWarp < 4;
  const auto over_rows = [](float x) {
#pragma unroll
    for (int mask = 4; mask < kWarp; mask *= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
  };
  float* const row = shared + warp * kSlots<kQuads>;
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad)
#pragma unroll
    for (int c = 0; c < kOctet; ++c) {
      const float sum = over_rows(sums.quad[quad][c]);
      if (first) row[octets.of(quad, q) * kOctet + c] = sum;
    }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float sum = over_rows(sums.alone[c]);
    if (first) row[octets.alone() * kOctet + q * 2 + c] = sum;
  }
  __syncthreads();
  for (int column = threadIdx.x; column < columns.out; column += blockDim.x) {
    float sum = shared[column];
    for (int w = 1; w < warps; ++w) sum += shared[w * kSlots<kQuads> + column];
    partial[columns.weights(group, column)] = sum;
  }
}

template <int kQuads, class T>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    backward_kernel(const __grid_constant__ Deferred<LinearRmsNormBackward<T>> deferred,
                    const __grid_constant__ Columns columns) {
  const LinearRmsNormBackward<T>& p = deferred.wait();
  extern __shared__ __align__(128) unsigned char memory[];
  const int in = p.shape.in, groups = p.shape.groups, group = static_cast<int>(blockIdx.x) % groups;
  const int out = columns.out, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  T* const w = reinterpret_cast<T*>(memory);
  T* const stages = w + kSlots<kQuads> * in;
  T* const own = stages + warp * kWarpElements<kQuads, T>;
  float* const weight = reinterpret_cast<float*>(stages + warps * kWarpElements<kQuads, T>);
  const Octets<kQuads> octets(columns, group);
  const Tiles tiles(p.shape.rows, groups);

  // raw and dy of a tile, in one group of copies with the stage of dx that is refilled next. Zeros
  // in octets that there is room for but that do not exist. Eight rows of four octets a copy.
  const auto fetch = [&](int tile) {
    if (tile >= tiles.count) return;
    constexpr int kOctets = kSlots<kQuads> / kOctet;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = std::int64_t{tile} * kTileRows + i * 8 + g;
      const std::int64_t at = (row * groups + group) * out + q * kOctet;
      T* const to = own + ((i * 8 + g) * kPitch<kQuads> + q) * kOctet;
#pragma unroll
      for (int octet = 0; octet < kOctets; octet += 4) {
        if (octet + q >= kOctets) continue;
        const bool exists = row < p.shape.rows && (octet + q) * kOctet < out;
        copy_async(to + octet * kOctet, p.raw + at + octet * kOctet, exists);
        copy_async(to + octet * kOctet + kArray<kQuads>, p.dy + at + octet * kOctet, exists);
      }
    }
  };
  // The first rows come from DRAM while W, which lies in the L2 cache, is asked for.
  fetch(tiles.first);
  Stages<T> before(own + 2 * kArray<kQuads>, p.dx, p.shape, group, tiles);
  before.refill(p.accumulate);
  fetch_matrix(w, p.w + static_cast<std::int64_t>(group) * out * in, columns, octets, in);
  commit_copies();
  for (int stage = 1; stage < before.kCount; ++stage) before.refill(p.accumulate);
  fetch_weights(weight, kSlots<kQuads>, columns, p.weight, group);
  wait_copies<before.kCount - 1>();
  __syncthreads();
  permute_columns<kQuads>(w, in);
  __syncthreads();

  // The oldest stage of dx has come, and raw and dy, which began no later. With fewer stages a tile
  // than there are they did begin later.
  const auto wait_oldest = [&] {
    if (in >= before.kCount * kPanel) wait_copies<before.kCount - 1>();
    else wait_copies<0>();
    __syncwarp();
  };

  const unsigned none = static_cast<unsigned>(in) % kOctet;
  const MatrixAddress matrix = MatrixAddress::of<kQuads>(w);
  WeightSums<kQuads> weight_sums;
  for (int tile = tiles.first; tile < tiles.count; tile += tiles.step) {
    const std::int64_t row = std::int64_t{tile} * kTileRows + g;
    const bool exists[2] = {row < p.shape.rows, row + 8 < p.shape.rows};
    const std::int64_t down = std::int64_t{8} * groups;  // to the lane's other row, in groups
    T* const dx = p.dx + (row * groups + group) * in + q * kOctet;
    wait_oldest();
    Rows<kQuads> rows;
    T* const draw = p.draw + (row * groups + group) * out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const T* const raw = own + (g + i * 8) * kPitch<kQuads> * kOctet;
      norm_row(rows, weight_sums, i, raw, raw + kArray<kQuads>, columns, octets, weight);
      if (!exists[i]) continue;
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const int column = octets.of(quad, q) * kOctet;
        if (column < out)
          *reinterpret_cast<uint4*>(draw + i * down * out + column) = rows.octet(i, quad, none);
      }
      const int alone = octets.alone() * kOctet + q * 2;
      if (alone < out) *reinterpret_cast<unsigned*>(draw + i * down * out + alone) = rows.alone[i];
    }
    __syncwarp();
    fetch(tile + tiles.step);

    T* to[2] = {dx, dx + down * in};
    for (int k = 0; k < in; k += kPanel, to[0] += kPanel, to[1] += kPanel) {
      wait_oldest();
      const unsigned stage = shared_address(panel_chunk(before.oldest(), g, q));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sums[4][4] = {};  // of column 2 j + c, row i: [j][2 i + c]
        if (p.accumulate)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint4 pairs = load_shared((stage ^ half * 64) + i * 8 * kPanel * sizeof(T));
            const unsigned of[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float2 pair = widen_pair<T>(of[j]);
              sums[j][i * 2] = pair.x;
              sums[j][i * 2 + 1] = pair.y;
            }
          }
        multiply<kQuads, T>(sums, rows, matrix, k * kSlots<kQuads> * int{sizeof(T)}, half);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float row_sums[kOctet] = {
              sums[0][i * 2], sums[0][i * 2 + 1], sums[1][i * 2], sums[1][i * 2 + 1],
              sums[2][i * 2], sums[2][i * 2 + 1], sums[3][i * 2], sums[3][i * 2 + 1]};
          if (exists[i]) store_narrow(to[i] + half * 32, row_sums);
        }
      }
      __syncwarp();
      before.refill(p.accumulate);
    }
  }
  __syncthreads();  // nobody reads W any more
  const std::int64_t weights = std::int64_t{groups} * out;
  store_weight_sums(weight_sums, reinterpret_cast<float*>(memory),
                    static_cast<float*>(p.workspace) + blockIdx.x / groups * weights, group,
                    columns, octets);
}

}  // namespace

template <class T>
bool linear_rmsnorm_backward_fused(CudaQueue& queue, const LinearRmsNormBackward<T>& p) {
  const LinearRmsNormShape& shape = p.shape;
  if (!shape_fits(queue, shape, kLeastTiles) || !aligned<T>({p.raw, p.w, p.dy, p.draw, p.dx}))
    return false;
  bool done = false;
  with_quads(shape.out(), [&]<int kQuads>() {
    const std::size_t fixed = kSlots<kQuads> * (shape.in * sizeof(T) + sizeof(float));
    const std::size_t per_warp = kWarpElements<kQuads, T> * sizeof(T);
    const int warps = warps_of(queue, fixed, per_warp, kMostWarps);
    if (warps < kLeastWarps) return;
    // As many partial sums at the most as rmsnorm's own workspace holds.
    const int blocks = blocks_of(queue, shape, rmsnorm_pieces(shape.rows));
    launch(queue, "linear_rmsnorm_backward", backward_kernel<kQuads, T>,
           dim3(static_cast<unsigned>(blocks * shape.groups)), warps * kWarp,
           fixed + warps * per_warp, p, Columns::of(shape));
    sum_weight_gradients(queue, shape.norm(), static_cast<const float*>(p.workspace), blocks,
                         p.dweight);
    done = true;
  });
  return done;
}

template bool linear_rmsnorm_backward_fused(CudaQueue&, const LinearRmsNormBackward<f16>&);
template bool linear_rmsnorm_backward_fused(CudaQueue&, const LinearRmsNormBackward<bf16>&);

}  // namespace fm
