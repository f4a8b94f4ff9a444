// What the two CPU paths of the selective scan share. Private to this folder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/selective_scan/selective_scan.h"

namespace fm::scan_cpu {

// Steps between two saved states, which is also the block the backward pass recomputes. Pieces of
// the chunked path are whole blocks, so that each starts at a saved state.
constexpr int kStatesEvery = 16;
constexpr int kMaxState = 128;

struct Steps {
  int begin, end;
};

// The steps of a chunk; empty where the sequence has fewer blocks than chunks.
inline Steps steps_of(const ScanShape& shape, int chunks, int chunk) {
  const int each = (shape.length + chunks - 1) / chunks;
  const int whole = (each + kStatesEvery - 1) / kStatesEvery * kStatesEvery;
  return {std::min(chunk * whole, shape.length), std::min((chunk + 1) * whole, shape.length)};
}

inline int blocks_of(const ScanShape& shape) {
  return (shape.length + kStatesEvery - 1) / kStatesEvery;
}

// The row of a step: direction 1 walks the tokens from the last to the first.
inline std::int64_t row_of(const ScanShape& shape, int image, int direction, int step) {
  return static_cast<std::int64_t>(image) * shape.length +
         (direction == 0 ? step : shape.length - 1 - step);
}

// The vectorised path (selective_scan_cpu_fast.cpp), for shapes already checked.
std::size_t fast_states_bytes(const ScanShape&);
std::size_t fast_backward_workspace(const ScanShape&);
void fast_forward(CpuQueue&, const ScanForward<float>&, int chunks);
void fast_backward(CpuQueue&, const ScanBackward<float>&, int chunks);

}  // namespace fm::scan_cpu
