#include "kernels/base/check.h"
#include "kernels/base/cuda_graph.h"
#include "kernels/linear_combination/linear_combination_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

constexpr int kMaxTerms = 5;
const double kFactors[kMaxTerms] = {1, -0.125, 3, 1.0 / 6, 7.5};

// The sum of `terms` arrays; in place where `alias` is the index of one of them.
template <class R, class Q>
Values combine(Q& queue, std::int64_t count, int terms, int alias = -1, std::int64_t offset = 0) {
  std::vector<std::unique_ptr<Array<R, Q>>> x;
  LinearCombination<R> p{};
  p.count = count;
  p.terms = terms;
  for (int i = 0; i < terms; ++i) {
    const Values values =
        round_to<float>(normals(count + offset, static_cast<unsigned>(i) + 1, i + 1));
    x.push_back(std::make_unique<Array<R, Q>>(queue, values));
    p.x[i] = *x.back() + offset;
    p.factor[i] = static_cast<R>(static_cast<float>(kFactors[i]));
  }
  Array<R, Q> out(queue, count + offset);
  const Array<R, Q>& result = alias < 0 ? out : *x[static_cast<std::size_t>(alias)];
  p.out = result + offset;
  linear_combination(queue, p);
  const Values all = result.values();
  return Values(all.begin() + offset, all.end());
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("linear_combination: the sum, term by term") {
    const std::int64_t count = 40'000;  // several pieces
    for (int terms = 1; terms <= kMaxTerms; ++terms) {
      Values want(static_cast<std::size_t>(count), 0.0);
      for (int i = 0; i < terms; ++i) {
        const Values x = round_to<float>(normals(count, static_cast<unsigned>(i) + 1, i + 1));
        const double factor = static_cast<float>(kFactors[i]);
        for (std::size_t j = 0; j < want.size(); ++j) want[j] += factor * x[j];
      }
      expect_close("sum", combine<double>(cpu_queue(), count, terms), want, 1e-15);
    }
  }

  TEST_CASE("linear_combination: float agrees with double") {
    for (std::int64_t count : kLinearCombinationCases)
      for (int terms = 1; terms <= kMaxTerms; ++terms)
        expect_close("sum", combine<float>(cpu_queue(), count, terms),
                     combine<double>(cpu_queue(), count, terms), kLinearCombinationTolerance.f32);
  }

  TEST_CASE("linear_combination: in place") {
    for (int alias = 0; alias < kMaxTerms; ++alias) {
      CHECK(combine<double>(cpu_queue(), 1021, kMaxTerms, alias) ==
            combine<double>(cpu_queue(), 1021, kMaxTerms));
      CHECK(combine<float>(cpu_queue(), 1021, kMaxTerms, alias) ==
            combine<float>(cpu_queue(), 1021, kMaxTerms));
    }
  }

  TEST_CASE("linear_combination: terms outside 1 to 5 are refused") {
    LinearCombination<float> p{};
    CHECK_THROWS_AS(linear_combination(cpu_queue(), p), Error);
    p.terms = 6;
    CHECK_THROWS_AS(linear_combination(cpu_queue(), p), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("linear_combination: CUDA agrees with the CPU") {
    CudaQueue& queue = cuda_queue();
    for (std::int64_t count : kLinearCombinationCases) {
      for (int terms = 1; terms <= kMaxTerms; ++terms) {
        for (std::int64_t offset : {0, 1}) {  // 1: no wide access is aligned
          const Values want = combine<double>(cpu_queue(), count, terms, -1, offset);
          const Values got = combine<float>(queue, count, terms, -1, offset);
          expect_close("sum", got, want, kLinearCombinationTolerance.f32);
          CHECK(combine<float>(queue, count, terms, terms - 1, offset) == got);
        }
      }
    }
  }

  // kernels/base/deferred.cuh: the blocks of one kernel may start before the last kernel's have
  // ended. Each link of this chain reads what blocks far from its own wrote in the link before.
  TEST_CASE("linear_combination: a chain of kernels that overlap finds what each has left") {
    constexpr std::int64_t kCount = 1 << 20, kShift = 4096;
    constexpr int kLinks = 100;
    CudaQueue& queue = cuda_queue();
    Values values(kCount);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
    Array<float, CudaQueue> a(queue, values), b(queue, values);
    const CudaGraph graph(queue, [&] {
      for (int link = 0; link < kLinks; ++link) {
        const float* from = link % 2 == 0 ? a : b;
        float* to = link % 2 == 0 ? b : a;
        linear_combination(queue, LinearCombination<float>{
                                      kCount - kShift * (link + 1), 1, {from + kShift}, {1}, to});
      }
    });
    graph.launch(queue);
    const Values got = a.values();
    for (std::int64_t i = 0; i < kCount - kShift * kLinks; ++i)
      REQUIRE(got[static_cast<std::size_t>(i)] == static_cast<double>(i + kShift * kLinks));
  }
}
#endif

}  // namespace fm::test
