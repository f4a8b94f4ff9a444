// The contract of cross-entropy's entry points, checked by both backends.
#pragma once

#include "kernels/base/check.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace fm {

inline void check_cross_entropy(std::int64_t rows, int classes) {
  FM_CHECK(rows > 0 && rows <= std::int64_t{1} << 32 && classes > 0,
           "[cross_entropy] rows must be in [1, 2^32] and classes positive, got [", rows, ", ",
           classes, "]");
}

constexpr int kCrossEntropyPartials = 512;  // the loss is summed in at most so many pieces

}  // namespace fm
