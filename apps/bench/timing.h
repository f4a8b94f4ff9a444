// Times of a call on a queue: warmed up, with cold caches where asked.
#pragma once

#include <cstddef>
#include <deque>

#include "apps/bench/bench_arrays.h"

namespace fm {

struct Times {
  double median_ms = 0, p10_ms = 0, p90_ms = 0, fastest_ms = 0;
  std::size_t runs = 0;
};
Times times_of(const std::vector<double>& milliseconds);

class CallTimer {
 public:
  // As many runs of a call as `budget_ms` holds, but kFewest at the least and `most` at the most.
  static constexpr int kWarmUps = 3, kFewest = 5;
  CallTimer(const Queue& queue, int most, double budget_ms);

  // Before each run the caches are emptied of the memory in `cold` (on CUDA: of everything).
  Times operator()(const Call& call, const std::deque<Buffer>& cold);

 private:
  void make_cold(const std::deque<Buffer>& buffers);

  Queue queue_;
  int most_;
  double budget_ms_;
  Buffer sweep_, sink_;  // CUDA: read through to empty the cache
};

}  // namespace fm
