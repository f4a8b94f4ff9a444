#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"
#include "kernels/linear_combination/linear_combination.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 1 << 14;

// `out` may be one of the x, element for element, so a loop over neighbours can run in any order.
template <int kTerms, class R>
inline void combine_terms(const LinearCombination<R>& p, std::int64_t begin, std::int64_t end) {
  R* const out = p.out;
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    R sum = p.factor[0] * p.x[0][i];
    for (int term = 1; term < kTerms; ++term) sum += p.factor[term] * p.x[term][i];
    out[i] = sum;
  }
}

template <class R>
inline void combine_any(const LinearCombination<R>& p, std::int64_t begin, std::int64_t end) {
  switch (p.terms) {
    case 1: return combine_terms<1>(p, begin, end);
    case 2: return combine_terms<2>(p, begin, end);
    case 3: return combine_terms<3>(p, begin, end);
    case 4: return combine_terms<4>(p, begin, end);
    case 5: return combine_terms<5>(p, begin, end);
  }
}

FM_SIMD void combine(const LinearCombination<float>& p, std::int64_t begin, std::int64_t end) {
  combine_any(p, begin, end);
}
void combine(const LinearCombination<double>& p, std::int64_t begin, std::int64_t end) {
  combine_any(p, begin, end);
}

}  // namespace

template <class R>
void linear_combination(CpuQueue& queue, const LinearCombination<R>& p) {
  FM_CHECK(p.terms >= 1 && p.terms <= 5, "[linear_combination] 1 to 5 terms, got ", p.terms);
  FM_CHECK(p.count >= 0, "[linear_combination] count must not be negative, got ", p.count);
  parallel_for(queue, p.count, kGrain,
               [&](std::int64_t begin, std::int64_t end) { combine(p, begin, end); });
}

template void linear_combination(CpuQueue&, const LinearCombination<float>&);
template void linear_combination(CpuQueue&, const LinearCombination<double>&);

}  // namespace fm
