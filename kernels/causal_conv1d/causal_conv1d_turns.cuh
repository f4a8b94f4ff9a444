// How causal_conv1d's threads get at the tokens that they walk: lines, W tokens of one at a time,
// and the next ones while they work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/vec.cuh"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/matmul/matmul_mma.cuh"

namespace fm::causal_conv1d {

constexpr int kThreads = 256;  // of a block

// Channel `channel` of one image: where the first token of the direction's order lies, and how far
// the next.
template <class P>
struct Line {
  P* first;
  std::int64_t step;

  __device__ Line(P* rows, std::int64_t stride, std::int64_t image, const ConvShape& s,
                  int channel) {
    const bool mirrored = channel >= s.channels / s.directions;
    first = rows + (image * s.length + (mirrored ? s.length - 1 : 0)) * stride + channel;
    step = mirrored ? -stride : stride;
  }
  __device__ P* at(int t) const { return first + t * step; }
};

// The tokens t to t + W - 1 of a line as they lie in memory; zeros from `end` on, and before 0.
// kInside: the caller knows that they are all there.
template <class T, int W, int N>
struct Turn {
  Vec<T, N> at[W];

  template <bool kInside>
  __device__ __forceinline__ void load(const Line<const T>& line, int t, int end) {
    const T* from = line.at(t);
#pragma unroll
    for (int j = 0; j < W; ++j, from += line.step) {
      if (kInside || (t + j >= 0 && t + j < end)) at[j] = *reinterpret_cast<const Vec<T, N>*>(from);
      else at[j] = Vec<T, N>{};
    }
  }
};

// A thread's next turns of one of kArrays lines that it walks together. Where a vector is 8 bytes
// and the width at most 4, kTurns of them are on their way to shared memory, where the thread that
// copied them reads them: registers hold one turn, 32 KB a multiprocessor in backward, with which
// DRAM idled a fifth of the time.
template <class T, int W, int N, int kArrays>
class Ahead {
  static constexpr bool kShared = W <= 4 && sizeof(Vec<T, N>) == 8;

 public:
  static constexpr int kTurns = kShared ? 4 : 1;
  static constexpr std::size_t kBytes = kShared ? kTurns * W * kThreads * sizeof(Vec<T, N>) : 0;

  // `shared`: kBytes of the block, of this array.
  __device__ __forceinline__ explicit Ahead(unsigned char* shared)
      : own_(reinterpret_cast<Vec<T, N>*>(shared) + threadIdx.x) {}

  // Starts turn i, of tokens from t on, before the first is taken; the arrays take turns.
  __device__ __forceinline__ void start(const Line<const T>& line, int i, int t, int end) {
    if constexpr (kShared) copy<false>(line, i, t, end);
    else next_.template load<false>(line, t, end);
  }
  // The oldest turn, whose tokens are from t on; starts the one kTurns further. kInside: as
  // Turn::load's, of that one.
  template <bool kInside>
  __device__ __forceinline__ Turn<T, W, N> take(const Line<const T>& line, int t, int end) {
    Turn<T, W, N> turn = next_;
    if constexpr (kShared) {
      wait_copies<kArrays * kTurns - 1>();
#pragma unroll
      for (int j = 0; j < W; ++j) turn.at[j] = own_[(oldest_ * W + j) * kThreads];
      copy<kInside>(line, oldest_, t + kTurns * W, end);
      oldest_ = (oldest_ + 1) % kTurns;
    } else next_.template load<kInside>(line, t + W, end);
    return turn;
  }

 private:
  template <bool kInside>
  __device__ __forceinline__ void copy(const Line<const T>& line, int i, int t, int end) {
    const T* from = line.at(t);
#pragma unroll
    for (int j = 0; j < W; ++j, from += line.step)
      copy_async<8>(shared_address(own_ + (i * W + j) * kThreads), from, kInside || t + j < end);
    commit_copies();
  }

  Vec<T, N>* own_;
  int oldest_ = 0;
  Turn<T, W, N> next_;
};

}  // namespace fm::causal_conv1d
