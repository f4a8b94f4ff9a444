// The contract of flow's entry points, checked by both backends.
#pragma once

#include "kernels/base/check.h"
#include "kernels/flow/flow.h"

namespace fm {

inline void check_flow_shape(int batch, std::int64_t pixels) {
  FM_CHECK(batch > 0 && pixels > 0 && pixels <= std::int64_t{1} << 34,
           "[flow] batch and pixels must be positive, pixels at most 2^34, got [", batch, ", ",
           pixels, "]");
}

template <class R>
void check_flow_batch(const FlowBatch<R>& p) {
  check_flow_shape(p.batch, p.pixels);
  FM_CHECK(p.images >= p.batch && p.images <= std::int64_t{1} << 32,
           "[flow] the data set must hold between one batch (", p.batch, ") and 2^32 images, got ",
           p.images);
  FM_CHECK(!p.labels == !p.batch_labels,
           "[flow] labels and batch_labels must be given together, got ",
           p.labels ? "labels" : "batch_labels", " alone");
}

inline void check_flow_count(std::int64_t count) {
  FM_CHECK(count > 0, "[flow] the loss needs at least one element, got ", count);
}

}  // namespace fm
