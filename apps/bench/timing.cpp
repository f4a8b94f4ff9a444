#include "apps/bench/timing.h"

#include <algorithm>
#include <chrono>

#include "apps/bench/probes.h"
#include "apps/statistics.h"
#include "kernels/base/ticks.h"

namespace fm {
namespace {

// The cache's replacement is not strictly the oldest first: one pass over its size leaves some.
constexpr std::size_t kSweeps = 3;

CpuTicks ticks_on(const CpuQueue&, std::size_t slots) {
  return CpuTicks(slots);
}
#if FM_CUDA
CudaTicks ticks_on(const CudaQueue&, std::size_t slots) {
  return CudaTicks(slots);
}
#endif

}  // namespace

Times times_of(const std::vector<double>& milliseconds) {
  return {quantile(milliseconds, 0.5), quantile(milliseconds, 0.1), quantile(milliseconds, 0.9),
          quantile(milliseconds, 0), milliseconds.size()};
}

CallTimer::CallTimer(const Queue& queue, int most, double budget_ms)
    : queue_(queue), most_(most), budget_ms_(budget_ms) {
#if FM_CUDA
  if (const auto* cuda = std::get_if<CudaQueue>(&queue_)) {
    sweep_ = Buffer(queue_, kSweeps * cache_bytes(*cuda));
    sweep_.zero();
    sink_ = Buffer(queue_, kSinkBytes);
  }
#endif
}

void CallTimer::make_cold(const std::deque<Buffer>& buffers) {
#if FM_CUDA
  if (auto* cuda = std::get_if<CudaQueue>(&queue_)) {
    read_through(*cuda, sweep_.data(), sweep_.bytes(), sink_.data());
    return;
  }
#endif
  for (const Buffer& buffer : buffers)
    evict(std::get<CpuQueue>(queue_), buffer.data(), buffer.bytes());
}

Times CallTimer::operator()(const Call& call, const std::deque<Buffer>& cold) {
  return std::visit(
      [&](auto& queue) {
        using Clock = std::chrono::steady_clock;
        for (int i = 0; i < kWarmUps; ++i) call();
        synchronize(queue);
        const auto start = Clock::now();
        make_cold(cold);
        call();
        synchronize(queue);
        const double one = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
        const int runs = std::min(most_, std::max(kFewest, static_cast<int>(budget_ms_ / one)));
        // All are enqueued before the first is waited for, so that a CUDA device is never idle
        // between the sweep and the call.
        auto ticks = ticks_on(queue, 2 * static_cast<std::size_t>(runs));
        for (int i = 0; i < runs; ++i) {
          make_cold(cold);
          ticks.mark(queue, 2 * static_cast<std::size_t>(i));
          call();
          ticks.mark(queue, 2 * static_cast<std::size_t>(i) + 1);
        }
        std::vector<double> times;
        for (std::size_t i = 0; i < static_cast<std::size_t>(runs); ++i)
          times.push_back(ticks.milliseconds(2 * i, 2 * i + 1));
        return times_of(times);
      },
      queue_);
}

}  // namespace fm
