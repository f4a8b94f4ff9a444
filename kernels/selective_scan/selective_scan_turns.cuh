// Threads that convert a part of every group each and read all of it later.
//
// A thread says that its part of the next group is done, walks the present one, and only then waits
// for the parts of the others: a barrier in two halves (mbarrier, sm_80). Every thread arrives for
// itself: one lane a warp, behind __syncwarp(), would do and be 5 us of 548 faster in the scan's
// forward, but compute-sanitizer's racecheck does not follow that order and reports hazards.
// Source: the PTX ISA, section on mbarrier.
#pragma once

#include <cstdint>

#include "kernels/base/vec.cuh"

namespace fm::scan {

// kSplit false: a whole barrier where the wait is, for where nobody may be a group ahead.
template <int kThreads, bool kSplit>
class Turns {
 public:
  // Before a barrier of the CTA.
  __device__ __forceinline__ void init() {
    if (kSplit && threadIdx.x == 0)
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&done_)), "r"(kThreads)
                   : "memory");
  }
  // The thread's part of a group is done. Every thread comes here once a group.
  __device__ __forceinline__ void done() {
    if constexpr (kSplit)
      asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(
                       shared_address(&done_))
                   : "memory");
  }
  // All parts of a group are done; its number modulo 2. Every thread comes here once a group,
  // before it says done() of the next.
  __device__ __forceinline__ void wait(int parity) {
    if constexpr (kSplit)
      asm volatile(
          "{\n\t.reg .pred done;\n\t"
          "WAIT:\n\t"
          "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n\t"
          "@!done bra WAIT;\n\t}" ::"r"(shared_address(&done_)),
          "r"(parity)
          : "memory");
    else __syncthreads();
  }

 private:
  std::uint64_t done_;
};

}  // namespace fm::scan
