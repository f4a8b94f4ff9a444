#include <algorithm>
#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/cast/cast.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 1 << 16;

}  // namespace

template <class From, class To>
void cast(CpuQueue& queue, const Cast<From, To>& p) {
  FM_CHECK(p.count >= 0, "[cast] count must not be negative, got ", p.count);
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) p.to[i] = static_cast<To>(p.from[i]);
  });
}

template <class T>
void fill(CpuQueue& queue, const Fill<T>& p) {
  FM_CHECK(p.count >= 0, "[fill] count must not be negative, got ", p.count);
  parallel_for(queue, p.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::fill(p.to + begin, p.to + end, p.value);
  });
}

template void cast(CpuQueue&, const Cast<float, float>&);
template void cast(CpuQueue&, const Cast<float, double>&);
template void cast(CpuQueue&, const Cast<double, float>&);
template void cast(CpuQueue&, const Cast<double, double>&);
template void fill(CpuQueue&, const Fill<float>&);
template void fill(CpuQueue&, const Fill<double>&);
template void fill(CpuQueue&, const Fill<std::int32_t>&);

}  // namespace fm
