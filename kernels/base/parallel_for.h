// Splits a range over a CPU queue's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/queue.h"
#include "kernels/base/thread_pool.h"

namespace fm {

// Calls body(begin, end) over [0, count) in pieces of `grain`. The pieces depend on count and grain
// alone, never on the number of threads, so a reduction with one partial result a piece has the
// same bits on any machine.
template <class Body>
void parallel_for(CpuQueue& queue, std::int64_t count, std::int64_t grain, Body&& body) {
  struct Range {
    std::int64_t count, grain;
    std::remove_reference_t<Body>* body;
  } range{count, std::max<std::int64_t>(grain, 1), &body};
  const std::int64_t pieces = (count + range.grain - 1) / range.grain;
  queue.pool().run(
      pieces,
      [](void* context, std::int64_t index) {
        auto& r = *static_cast<Range*>(context);
        const std::int64_t begin = index * r.grain;
        (*r.body)(begin, std::min(begin + r.grain, r.count));
      },
      &range);
}

}  // namespace fm
