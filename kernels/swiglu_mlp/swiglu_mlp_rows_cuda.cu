#include <algorithm>

#include "kernels/base/approx.cuh"
#include "kernels/base/hopper.cuh"
#include "kernels/base/launch.cuh"
#include "kernels/base/mma.cuh"
#include "kernels/swiglu_mlp/swiglu_mlp_backward.h"

// A block has two warpgroups of 64 rows each and walks over the hidden units, 64 at a time, whose
// weights (48 KB) a third role, one thread, brings by the copy engine into two or three stages.
// All of a row's way from x to y (or from x and dy to dx) is in the warpgroup's registers: the sums
// of a product are the left operand of the next. While one warpgroup works out its gates, the other
// has the tensor cores. Blocks are persistent: the next rows arrive during the present ones.
namespace fm {
namespace {

constexpr int kGroups = 2, kRows = 64;  // warpgroups, and rows of each
constexpr int kThreads = (kGroups + 1) * kWarpgroup;
constexpr int kWalkRegisters = 240, kBringRegisters = 24;
constexpr unsigned kRowPanel = kRows * kPanelRowBytes;         // 64 columns of x
constexpr unsigned kRowTile = kMlpWidth / kPanel * kRowPanel;  // 16 KB
constexpr unsigned kUnitPanel = kMlpUnits * kPanelRowBytes;    // 64 columns of w12's half
constexpr unsigned kW12Panel = 2 * kUnitPanel;                 // a's units, then b's
constexpr unsigned kW3 = kMlpWidth * kPanelRowBytes;
constexpr unsigned kBias = 2 * kMlpUnits * 2;
constexpr unsigned kW12 = kMlpWidth / kPanel * kW12Panel;  // bytes: 32 KB

template <bool kBackward>
struct Plan {
  static constexpr int kStages = kBackward ? 2 : 3;  // of weights
  static constexpr int kSlots = 2;                   // of rows
  static constexpr int kTiles = kBackward ? 2 : 1;   // x, dy
  static constexpr unsigned kSlot = kTiles * kRowTile;
  static constexpr unsigned kWeights = kW12 + kW3;
  // Offsets: rows [group][slot], weights [stage], biases [stage], barriers.
  static constexpr unsigned kWeightsAt = kGroups * kSlots * kSlot;
  static constexpr unsigned kBiasAt = kWeightsAt + kStages * kWeights;
  static constexpr unsigned kBarriersAt = kBiasAt + kStages * kBias;
  static constexpr int kBarriers = 2 * kGroups * kSlots + 2 * kStages;
  static constexpr unsigned kBytes = kBarriersAt + kBarriers * 8;
};

template <class T>
struct RowArgs {
  CUtensorMap x, w12, w3, dy, to;
  const T *b12, *b3;
  std::int64_t rows;
  int hidden;
};

// The shared addresses of one block, and its barriers by number: of one warpgroup, and for its turn
// at the tensor cores.
template <bool kBackward>
struct Addresses {
  using P = Plan<kBackward>;
  unsigned base;
  // n counts a block's rows, stages a step's weights.
  __device__ unsigned rows(int group, int n) const { return base + slot(group, n) * P::kSlot; }
  __device__ unsigned weights(int stage) const {
    return base + P::kWeightsAt + stage * P::kWeights;
  }
  __device__ unsigned bias(int stage) const { return base + P::kBiasAt + stage * kBias; }
  __device__ unsigned rows_full(int group, int n) const { return at(slot(group, n)); }
  __device__ unsigned rows_empty(int group, int n) const {
    return at(kGroups * P::kSlots + slot(group, n));
  }
  __device__ unsigned full(int stage) const { return at(2 * kGroups * P::kSlots + stage); }
  __device__ unsigned empty(int stage) const {
    return at(2 * kGroups * P::kSlots + P::kStages + stage);
  }
  __device__ unsigned phase(int n) const { return n / P::kSlots & 1; }
  __device__ int own(int group) const { return 1 + group; }
  __device__ int turn(int group) const { return 1 + kGroups + group; }

 private:
  __device__ unsigned slot(int group, int n) const { return group * P::kSlots + n % P::kSlots; }
  __device__ unsigned at(int barrier) const { return base + P::kBarriersAt + barrier * 8; }
};

struct Stage {
  int at = 0;
  unsigned phase = 0;
  template <int kStages>
  __device__ void next() {
    if (++at == kStages) at = 0, phase ^= 1;
  }
};

// The thread that brings rows and weights.
template <class T, bool kBackward>
__device__ void bring(const RowArgs<T>& p, const Addresses<kBackward>& shared) {
  using P = Plan<kBackward>;
  const std::int64_t blocks = ceil_div(p.rows, kGroups * kRows);
  const auto bring_rows = [&](std::int64_t block, int n) {
    for (int group = 0; group < kGroups; ++group) {
      const unsigned to = shared.rows(group, n), full = shared.rows_full(group, n);
      const int row = static_cast<int>((block * kGroups + group) * kRows);
      barrier_wait(shared.rows_empty(group, n), shared.phase(n) ^ 1);
      barrier_expect(full, P::kSlot);
      for (int panel = 0; panel < 2; ++panel) {
        load_tile(to + panel * kRowPanel, p.x, panel * kPanel, row, full);
        if constexpr (kBackward)
          load_tile(to + kRowTile + panel * kRowPanel, p.dy, panel * kPanel, row, full);
      }
    }
  };
  const auto bring_weights = [&](int unit, Stage stage) {
    const unsigned to = shared.weights(stage.at), full = shared.full(stage.at);
    barrier_wait(shared.empty(stage.at), stage.phase ^ 1);
    barrier_expect(full, P::kWeights + kBias);
    for (int panel = 0; panel < 2; ++panel)
      for (int half = 0; half < 2; ++half)
        load_tile(to + panel * kW12Panel + half * kUnitPanel, p.w12, panel * kPanel,
                  half * p.hidden + unit, full);
    load_tile(to + kW12, p.w3, unit, 0, full);
    for (int half = 0; half < 2; ++half)
      load_bytes(shared.bias(stage.at) + half * kBias / 2, p.b12 + half * p.hidden + unit,
                 kBias / 2, full);
  };
  Stage stage;
  int n = 0;
  bring_rows(blockIdx.x, 0);
  for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x, ++n)
    for (int unit = 0; unit < p.hidden; unit += kMlpUnits) {
      bring_weights(unit, stage);
      stage.template next<P::kStages>();
      // The other slot is free when the last rows are stored; by then a step of these has begun.
      const int early = min(P::kStages * kMlpUnits, p.hidden - kMlpUnits);
      if (unit == early && block + gridDim.x < blocks) bring_rows(block + gridDim.x, n + 1);
    }
}

// Two neighbouring biases of 8 j + 2 q.
template <class T>
__device__ __forceinline__ float2 bias_pair(unsigned bias, int j) {
  return widen_pair<T>(*static_cast<const unsigned*>(
      __cvta_shared_to_generic(bias + (8 * j + threadIdx.x % 4 * 2) * 2)));
}

// Sums of [a | b] of 64 rows and units to fragments of h.
template <class T>
__device__ __forceinline__ void gate_forward(unsigned (&h)[4][4], const float (&ab)[64],
                                             unsigned bias) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 bias_a = bias_pair<T>(bias, j), bias_b = bias_pair<T>(bias + kBias / 2, j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * j + 2 * half;
      const float a0 = ab[i] + bias_a.x, a1 = ab[i + 1] + bias_a.y;
      const float b0 = ab[32 + i] + bias_b.x, b1 = ab[32 + i + 1] + bias_b.y;
      h[j / 2][j % 2 * 2 + half] =
          narrow_pair<T>(a0 * sigmoid_approx(a0) * b0, a1 * sigmoid_approx(a1) * b1);
    }
  }
}

// From sums of [a | b] what dh is multiplied by to give da and db.
template <class T>
__device__ __forceinline__ void gate_slopes(float (&to_a)[32], float (&to_b)[32],
                                            const float (&ab)[64], unsigned bias) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 bias_a = bias_pair<T>(bias, j), bias_b = bias_pair<T>(bias + kBias / 2, j);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = 4 * j + k;
      const float a = ab[i] + (k % 2 ? bias_a.y : bias_a.x);
      const float b = ab[32 + i] + (k % 2 ? bias_b.y : bias_b.x);
      const float s = sigmoid_approx(a), gate = a * s;
      to_a[i] = b * fmaf(gate, 1.0f - s, s);
      to_b[i] = gate;
    }
  }
}

// Fragments of 64 rows and units: to times dh.
template <class T>
__device__ __forceinline__ void times_gradient(unsigned (*to)[4], const float (&by)[32],
                                               const float (&dh)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i += 2)
    to[i / 8][i / 2 % 4] = narrow_pair<T>(dh[i] * by[i], dh[i + 1] * by[i + 1]);
}

// A warpgroup's work: its 64 rows of every block of rows.
template <class T, bool kBackward>
__device__ void walk(const RowArgs<T>& p, const Addresses<kBackward>& shared) {
  using P = Plan<kBackward>;
  const std::int64_t blocks = ceil_div(p.rows, kGroups * kRows);
  const int group = threadIdx.x / kWarpgroup, warp = threadIdx.x / kWarp % 4;
  const int lane = threadIdx.x % kWarp;
  const unsigned row_bytes = (16 * warp + lane % 16) * kPanelRowBytes;
  const auto at_chunk = [&](int chunk) {  // of this lane's row of its warp's 16
    return chunk / 8 * kRowPanel + row_bytes + ((chunk % 8 ^ lane % 8) << 4);
  };
  // The warpgroups take turns at issuing products, so that the gates of one are worked out while
  // the other's products run: forward 45 to 40 us.
  const auto wait_for_turn = [&] { named_sync(shared.turn(group), kGroups * kWarpgroup); };
  const auto pass_turn = [&] { named_arrive(shared.turn(group ^ 1), kGroups * kWarpgroup); };
  if (group == 1) pass_turn();
  Stage stage;
  int n = 0;
  for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x, ++n) {
    const unsigned rows = shared.rows(group, n);
    barrier_wait(shared.rows_full(group, n), shared.phase(n));
    unsigned x[kBackward ? 1 : 8][4];
    if constexpr (!kBackward) {
#pragma unroll
      for (int k = 0; k < 8; ++k)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[k][0]), "=r"(x[k][1]), "=r"(x[k][2]), "=r"(x[k][3])
                     : "r"(rows + at_chunk(2 * k + lane / 16))
                     : "memory");
    }
    float out[64];
    int last = -1;  // the stage that products still read
    for (int unit = 0; unit < p.hidden; unit += kMlpUnits) {
      const unsigned w12 = shared.weights(stage.at), w3 = w12 + kW12;
      barrier_wait(shared.full(stage.at), stage.phase);
      if (unit == 0) wait_for_turn();
      float ab[64], dh[kBackward ? 32 : 1];
      products_begin();
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const unsigned along = k % 4 * kNextAlong;
        const std::uint64_t w = panel_operand(w12 + k / 4 * kW12Panel + along);
        if constexpr (kBackward)
          multiply<T, kAlong, kAlong>(ab, panel_operand(rows + k / 4 * kRowPanel + along), w,
                                      k > 0);
        else multiply<T, kAlong>(ab, x[k], w, k > 0);
      }
      products_commit();
      if constexpr (kBackward) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          multiply<T, kAlong, kOver>(
              dh, panel_operand(rows + kRowTile + k / 4 * kRowPanel + k % 4 * kNextAlong),
              panel_operand(w3 + k * kNextOver), k > 0);
        products_commit();
      }
      pass_turn();
      products_wait<kBackward ? 1 : 0>();  // dh may be under way
      if (last >= 0) barrier_arrive(shared.empty(last));
      if constexpr (kBackward) {
        float to_a[32], to_b[32];
        gate_slopes<T>(to_a, to_b, ab, shared.bias(stage.at));
        products_wait<0>();
        unsigned dab[8][4];
        times_gradient<T>(dab, to_a, dh);
        times_gradient<T>(dab + 4, to_b, dh);
        if (unit + kMlpUnits < p.hidden) wait_for_turn();
        products_begin();
#pragma unroll
        for (int k = 0; k < 8; ++k)
          multiply<T, kOver>(out, dab[k], panel_operand(w12 + k * kNextOver, kW12Panel),
                             unit > 0 || k > 0);
      } else {
        unsigned h[4][4];
        gate_forward<T>(h, ab, shared.bias(stage.at));
        if (unit + kMlpUnits < p.hidden) wait_for_turn();
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k)
          multiply<T, kAlong>(out, h[k], panel_operand(w3 + k * kNextAlong), unit > 0 || k > 0);
      }
      products_commit();
      last = stage.at;
      stage.next<P::kStages>();
    }
    products_wait<0>();
    barrier_arrive(shared.empty(last));

    // The result goes where x was.
    named_sync(shared.own(group), kWarpgroup);
#pragma unroll
    for (int j = 0; j < 16; j += 2) {
      unsigned to[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 bias = make_float2(0, 0);
        if constexpr (!kBackward)
          bias = widen_pair<T>(
              *reinterpret_cast<const unsigned*>(p.b3 + 8 * (j + i / 2) + lane % 4 * 2));
        to[i] = narrow_pair<T>(out[4 * j + 2 * i] + bias.x, out[4 * j + 2 * i + 1] + bias.y);
      }
      store_matrices(rows + at_chunk(j + lane / 16), to);
    }
    publish_shared();
    named_sync(shared.own(group), kWarpgroup);
    if (threadIdx.x % kWarpgroup == 0) {
      const int row = static_cast<int>((block * kGroups + group) * kRows);
      for (int panel = 0; panel < 2; ++panel)
        store_tile(p.to, panel * kPanel, row, rows + panel * kRowPanel);
      wait_stores_read();
      barrier_arrive(shared.rows_empty(group, n));
    }
  }
}

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads, 1)
    swiglu_mlp_rows_kernel(const __grid_constant__ Deferred<RowArgs<T>> deferred) {
  if constexpr (kHopper) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Addresses<kBackward> shared{shared_address(memory)};
    if (threadIdx.x == 0) {
      for (int group = 0; group < kGroups; ++group)
        for (int slot = 0; slot < Plan<kBackward>::kSlots; ++slot) {
          barrier_init(shared.rows_full(group, slot), 1);
          barrier_init(shared.rows_empty(group, slot), 1);
        }
      for (int stage = 0; stage < Plan<kBackward>::kStages; ++stage) {
        barrier_init(shared.full(stage), 1);
        barrier_init(shared.empty(stage), kGroups * kWarpgroup);  // every reader's own arrival
      }
      barriers_ready();
    }
    __syncthreads();
    const RowArgs<T>& p = deferred.wait();
    if (threadIdx.x < kGroups * kWarpgroup) {
      take_registers<kWalkRegisters>();
      walk<T, kBackward>(p, shared);
    } else {
      give_registers<kBringRegisters>();
      if (threadIdx.x == kGroups * kWarpgroup) bring<T, kBackward>(p, shared);
    }
  } else __trap();
}

template <bool kBackward, class T>
void launch_rows(CudaQueue& queue, const char* name, const RowArgs<T>& p) {
  const std::int64_t blocks = ceil_div(p.rows, kGroups * kRows);
  const std::int64_t grid = std::min<std::int64_t>(blocks, queue.limits.multiprocessors);
  launch(queue, name, swiglu_mlp_rows_kernel<T, kBackward>, dim3(static_cast<unsigned>(grid)),
         kThreads, Plan<kBackward>::kBytes, p);
}

// A build for plain sm_90, or for older devices, has empty kernels here: they need few registers.
bool compiled_for_hopper() {
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    FM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, swiglu_mlp_rows_kernel<f16, true>));
    return attributes.numRegs > 64;
  }();
  return compiled;
}

void check_fits(const CudaQueue& queue, const SwigluMlpShape& s, DType type) {
  FM_CHECK(swiglu_mlp_fits(queue, s, type),
           "[swiglu_mlp] width must be 128 and hidden a multiple of 64, on compute capability 9.0, "
           "got ",
           s.rows, " rows, width ", s.width, ", hidden ", s.hidden);
}

}  // namespace

bool swiglu_mlp_fits(const CudaQueue& queue, const SwigluMlpShape& s, DType type) {
  return (type == DType::f16 || type == DType::bf16) && s.width == kMlpWidth && s.hidden > 0 &&
         s.hidden % kMlpUnits == 0 && s.rows > 0 && s.rows <= 0x7fffff00 &&
         queue.limits.compute_capability == 90 &&
         queue.limits.shared_bytes_per_block >= std::max(Plan<true>::kBytes, Plan<false>::kBytes) &&
         compiled_for_hopper();
}

template <class T>
void swiglu_mlp_forward(CudaQueue& queue, const SwigluMlpForward<T>& p) {
  const SwigluMlpShape& s = p.shape;
  check_fits(queue, s, dtype_of<T>());
  launch_rows<false, T>(queue, "swiglu_mlp_forward",
                        {.x = panel_map(p.x, s.rows, s.width, kRows),
                         .w12 = panel_map(p.w12, 2 * s.hidden, s.width, kMlpUnits),
                         .w3 = panel_map(p.w3, s.width, s.hidden, kMlpWidth),
                         .dy = {},
                         .to = panel_map(p.y, s.rows, s.width, kRows),
                         .b12 = p.b12,
                         .b3 = p.b3,
                         .rows = s.rows,
                         .hidden = s.hidden});
}

template <class T>
void swiglu_mlp_backward_input(CudaQueue& queue, const SwigluMlpBackward<T>& p) {
  const SwigluMlpShape& s = p.shape;
  launch_rows<true, T>(queue, "swiglu_mlp_backward_input",
                       {.x = panel_map(p.x, s.rows, s.width, kRows),
                        .w12 = panel_map(p.w12, 2 * s.hidden, s.width, kMlpUnits),
                        .w3 = panel_map(p.w3, s.width, s.hidden, kMlpWidth),
                        .dy = panel_map(p.dy, s.rows, s.width, kRows),
                        .to = panel_map(p.dx, s.rows, s.width, kRows),
                        .b12 = p.b12,
                        .b3 = nullptr,
                        .rows = s.rows,
                        .hidden = s.hidden});
}

template <class T>
void swiglu_mlp_backward(CudaQueue& queue, const SwigluMlpBackward<T>& p) {
  check_fits(queue, p.shape, dtype_of<T>());
  swiglu_mlp_backward_weights(queue, p);  // reads dy, which dx may overwrite
  swiglu_mlp_backward_input(queue, p);
}

template void swiglu_mlp_forward(CudaQueue&, const SwigluMlpForward<f16>&);
template void swiglu_mlp_forward(CudaQueue&, const SwigluMlpForward<bf16>&);
template void swiglu_mlp_backward(CudaQueue&, const SwigluMlpBackward<f16>&);
template void swiglu_mlp_backward(CudaQueue&, const SwigluMlpBackward<bf16>&);

}  // namespace fm
