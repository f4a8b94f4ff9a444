#include "engine/stopwatch.h"

#include <algorithm>

namespace fm {
namespace {

template <class Ticks>
Ticks make_ticks(const Queue& queue, std::size_t slots) {
#if FM_CUDA
  if (std::holds_alternative<CudaQueue>(queue)) return CudaTicks(slots);
#endif
  static_cast<void>(queue);
  return CpuTicks(slots);
}

}  // namespace

Stopwatch::Stopwatch(const Queue& queue, std::size_t intervals)
    : ticks_(make_ticks<Ticks>(queue, 2 * intervals)), intervals_(intervals) {}

void Stopwatch::mark(Queue& queue) {
  const auto mark_slot = [&](std::size_t slot) {
    std::visit(
        [&]<class Q>(Q& q) {
          if constexpr (std::is_same_v<Q, CpuQueue>) std::get<CpuTicks>(ticks_).mark(q, slot);
#if FM_CUDA
          else std::get<CudaTicks>(ticks_).mark(q, slot);
#endif
        },
        queue);
  };
  if (running_) mark_slot(done_++ % intervals_ * 2 + 1);
  running_ = true;
  mark_slot(done_ % intervals_ * 2);
}

std::vector<double> Stopwatch::intervals_ms() const {
  // One interval fewer than there is room for: the slot of the oldest has been marked again as the
  // running one's start.
  const std::size_t count = std::min(done_, intervals_ - 1);
  std::vector<double> times;
  for (std::size_t i = done_ - count; i < done_; ++i) {
    const std::size_t slot = i % intervals_ * 2;
    times.push_back(
        std::visit([&](const auto& t) { return t.milliseconds(slot, slot + 1); }, ticks_));
  }
  return times;
}

}  // namespace fm
