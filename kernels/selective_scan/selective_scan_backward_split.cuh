// The backward kernel of the selective scan with its work split between the warps of a CTA, for 64
// and 128 states in 16 bits: how shared memory is cut, and how the roles wait for each other.
//
// Walkers take the elements (channel, step, state); a team of them shares a tile of 8 channels, a
// strip of 32 states each. What there is to do once a channel and step falls to two attendants a
// team: a preparer turns the inputs of the next tile into what the walk multiplies with, a finisher
// the last tile's sums over states into du and ddt. Their latencies are then hidden, and they use
// the issue slots that walkers leave. One warp for both kept the walkers waiting for 46 % of their
// time (H100, 64 states).
#pragma once

#include "kernels/selective_scan/selective_scan_backward.cuh"

namespace fm::scan {

// Tiles of a team that are prepared, walked or finished at a time.
constexpr unsigned kSlots = 3;

// Counts the tiles of a team, over all blocks: the slot of a tile, and the parity of its use.
struct Turn {
  unsigned slot = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
  __device__ __forceinline__ Turn after() const {
    Turn turn = *this;
    turn.advance();
    return turn;
  }
  __device__ __forceinline__ Turn before() const {
    return slot == 0 ? Turn{kSlots - 1, parity ^ 1} : Turn{slot - 1, parity};
  }
};

template <int kStates>
struct Split {
  using Tile = BackwardTile<kStates>;
  static_assert(kStates >= 64, "below that attendants would have more to do than walkers");
  static constexpr int strips = Tile::strips;
  static constexpr int walkers = 8, teams = walkers / strips, attendants = 4;  // of either kind
  static constexpr int threads = (walkers + 2 * attendants) * kWarp;
  // Of 128 a thread at launch, given and taken by groups of 4 warps.
  static constexpr int walker_registers = 200, attendant_registers = 56;
  static constexpr int max_channels = 256 * 64 / kStates;  // of a CTA: q and dA take 128 KB
  static constexpr int lanes = 4 * kBlockSteps;  // of a preparer or finisher: (step, two channels)
};

// Keeps a value in a register: the compiler would else derive it anew wherever it is used.
template <class U>
__device__ __forceinline__ U* in_register(U* shared) {
  unsigned address = shared_address(shared);
  asm volatile("" : "+r"(address));
  return static_cast<U*>(__cvta_shared_to_generic(address));
}

// What a team shares.
template <int kStates>
struct alignas(16) TeamShared {
  // What the walk multiplies with, [two channels].
  struct alignas(16) Step {
    float4 terms[4];   // delta and dy
    float4 outer[4];   // delta u in two parts, B operand of the outer product
    float4 finish[4];  // u and softplus'
    // Read where others read `outer`, of which [4] does not share a bank with `outer`; and so many
    // that no two steps that are written at once share one.
    float4 zeros[8];
  };
  struct alignas(16) Slot {
    Step steps[kBlockSteps];
  };
  Slot slots[kSlots];
  // Over the states of a strip: {g B of two channels, A q h of two channels} of a lane.
  float4 sums[Split<kStates>::strips][kBlockSteps * BackwardTile<kStates>::sums];
};

__device__ __forceinline__ void barrier_init(std::uint64_t& barrier, int warps) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(warps * kWarp)
               : "memory");
}
// Every lane arrives, which is faster than one for all of its warp (H100, 64 states: 1.48 ms, not
// 1.54) and than lanes that are not brought together before (1.51).
__device__ __forceinline__ void arrive(std::uint64_t& barrier) {
  __syncwarp();
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(&barrier))
      : "memory");
}
// Whether the phase of this parity is over; with parity 1 the first is at once. The answer takes as
// long as a load: asked for ahead, it costs nothing.
__device__ __forceinline__ unsigned barrier_over(std::uint64_t& barrier, unsigned parity) {
  unsigned over;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(over)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return over;
}
// Until it is over.
__device__ __forceinline__ void barrier_wait(std::uint64_t& barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  // Asleep at most so many ns a time: those that wait take no issue slots from those that walk.
  constexpr unsigned nap = 10000000;
  unsigned over;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2, %3; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(shared_address(&barrier)), "r"(parity), "r"(nap)
        : "memory");
  } while (!over);
#else
  while (!barrier_over(barrier, parity)) {
  }
#endif
}

struct Barriers {
  static constexpr int max_teams = 4;
  std::uint64_t full[max_teams][kSlots];     // a slot is ready to be walked
  std::uint64_t walked[max_teams];           // all sums of a tile are there
  std::uint64_t drained[max_teams][kSlots];  // and have been read, as has the slot
  static constexpr int drained_at = (kSlots + 1) * max_teams;  // from a team's `full` on
  // Of blocks in turn, counted from the last.
  std::uint64_t staged[2];        // B and C are there
  std::uint64_t gathered[2];      // all warps' dB and dC are there, and B and C have been read
  std::uint64_t matrices_stored;  // dB and dC have been read

  // Not of the first block, staged at the start.
  __device__ __forceinline__ void wait_for_staged(int block) {
    barrier_wait(staged[block & 1], (block - 1) >> 1 & 1);
  }
  __device__ __forceinline__ void wait_for_gathered(int block) {
    barrier_wait(gathered[block & 1], block >> 1 & 1);
  }
};

// Shared memory in bytes from its start; Where comes first.
template <int kStates>
struct SplitLayout {
  using Cut = Split<kStates>;
  static constexpr int barriers = sizeof(Where);
  // B and C of two blocks: [2][steps][2][states] float.
  static constexpr int matrices = (barriers + int(sizeof(Barriers)) + 15) / 16 * 16;
  static constexpr int matrices_bytes = 2 * kBlockSteps * kStates * 4;
  static constexpr int teams = matrices + 2 * matrices_bytes;
  // dB and dC of a block, as the walkers hold them: [walker][2][row][lane] float4.
  static constexpr int gathered = teams + Cut::teams * int(sizeof(TeamShared<kStates>));
  // The gradient of the state and dA, [tile][strip][q, q, dA, dA][lane] float4, by quads.
  static constexpr int carried = gathered + Cut::walkers * 4 * kWarp * 16;
  int parameters;  // [tile][lane of the finisher] float4: sums of dbias and of dD
  int bias;        // and D: [channels] float
  int skip;
  int bytes;

  // Where the q of a channel and state is in `carried`, in floats: element 2 column + row of a
  // quad.
  __device__ static int place_of_q(int channel, int state) {
    const int lane = state % 32 / 4 * 4 + channel % 8 / 2, quad = state % 4 / 2;
    const int row = (channel / 8 * Cut::strips + state / 32) * 4 + quad;
    return (row * kWarp + lane) * 4 + channel % 2 * 2 + state % 2;
  }

  __host__ __device__ explicit SplitLayout(int channels) {
    parameters = carried + channels * kStates * 8;
    bias = parameters + channels / 8 * Cut::lanes * 16;
    skip = bias + channels * 4;
    bytes = skip + channels * 4;
  }
};

template <class T>
constexpr bool can_split(int states) {
  return sizeof(T) == 2 && states >= 64;
}

// Launches the kernel for `ctas` CTAs of args.block_channels channels.
template <class T>
void launch_split(CudaQueue&, int states, const BackwardArgs<T>&, unsigned ctas);

// Whether dB and dC are sums over channels of products in T. For f16, whose 11 bits round better
// than tf32 cuts: two steps then share a product. What is summed fits where dB, dC and the saved
// states, which are f16 too, do: a gradient of a state above 65504 makes dB infinite, as it would
// dx, and the loss scale falls. bf16 has too few bits for it.
template <class T>
constexpr bool kSumsInT = std::is_same_v<T, f16>;
// Delta u is so much larger in these products, lest small ones have few bits.
constexpr float kDeltaUScale = 16.0f;
// What their sums are multiplied with. tf32 cuts both factors.
constexpr float kTf32Cuts = kTf32Cut * kTf32Cut;
template <class T>
constexpr float kScaleOfB = kSumsInT<T> ? 1 / kDeltaUScale : kTf32Cuts;
template <class T>
constexpr float kScaleOfC = kSumsInT<T> ? 1.0f : kTf32Cuts;

// What the roles share. The blocks are walked from last to first; a team's tiles of a block in
// order.
template <class T, int kStates>
struct SplitPlace : Place<T, kStates> {
  using Cut = Split<kStates>;
  using Layout = SplitLayout<kStates>;
  __device__ Barriers& barriers() const {
    return *this->template shared<Barriers>(Layout::barriers);
  }
  __device__ TeamShared<kStates>& team(int index) const {
    return this->template shared<TeamShared<kStates>>(Layout::teams)[index];
  }
  __device__ float* matrices(int block) const {
    return this->template shared<float>(Layout::matrices + (block & 1) * Layout::matrices_bytes);
  }
  __device__ float4* gathered(int walker) const {
    return this->template shared<float4>(Layout::gathered) + walker * 4 * kWarp;
  }
  __device__ Layout layout() const { return Layout(this->args.block_channels); }
};

}  // namespace fm::scan
