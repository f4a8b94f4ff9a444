#include "kernels/base/check.h"
#include "kernels/cast/cast_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// `from` as To, from an address `offset` elements into an array.
template <class From, class To, class Q>
Values cast_values(Q& queue, const Values& from, std::int64_t offset = 0) {
  Values padded(static_cast<std::size_t>(offset), 0.0);
  padded.insert(padded.end(), from.begin(), from.end());
  const std::int64_t count = static_cast<std::int64_t>(from.size());
  Array<From, Q> in(queue, padded);
  Array<To, Q> out(queue, count + 2 * offset);
  cast(queue, Cast<From, To>{count, in + offset, out + offset});
  Values all = out.values();
  for (std::int64_t i = 0; i < offset; ++i) {  // poison is still there before and behind
    CHECK(std::isnan(all[static_cast<std::size_t>(i)]));
    CHECK(std::isnan(all[all.size() - 1 - static_cast<std::size_t>(i)]));
  }
  return Values(all.begin() + offset, all.end() - offset);
}

void expect_equal(const Values& got, const Values& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("element ", i, ": ", got[i], ", expected ", want[i]);
    CHECK((std::isnan(want[i]) ? std::isnan(got[i]) : got[i] == want[i]));
  }
}

// Numbers on every side of what float and the half types can hold, ties included.
Values corner_values() {
  const double inf = std::numeric_limits<double>::infinity();
  Values values = {0,       -0.0,      1,           1 + 0x1p-11,    1 + 0x1p-10 + 0x1p-11,
                   65504,   65519,     65520,       -70000,         0x1p-14,
                   0x1p-24, 0x1.8p-24, 0x1p-25,     0x1.000002p-25, 1 + 0x1p-8,
                   1e30,    3.4e38,    1 + 0x1p-24, 1e-40,          0x1p-149,
                   inf,     -inf,      std::nan("")};
  for (double x : normals(200, 1)) values.push_back(x);
  for (double x : normals(200, 2, 1e-6)) values.push_back(x);
  return values;
}

template <class T, class Q>
void check_fill(Q& queue, std::int64_t count, T value, std::int64_t offset) {
  Array<T, Q> array(queue, count + 2 * offset);
  const Values before = array.values();
  fill(queue, Fill<T>{count, value, array + offset});
  const Values got = array.values();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    const bool inside = at >= offset && at < offset + count;
    if (inside) REQUIRE(got[i] == static_cast<double>(value));
    else REQUIRE(std::memcmp(&got[i], &before[i], sizeof(double)) == 0);
  }
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("cast: between float and double, rounded to nearest") {
    const Values values = corner_values();
    expect_equal(cast_values<double, float>(cpu_queue(), values), round_to<float>(values));
    expect_equal(cast_values<double, double>(cpu_queue(), values, 3), values);
    expect_equal(cast_values<float, double>(cpu_queue(), values, 1), round_to<float>(values));
    expect_equal(cast_values<float, float>(cpu_queue(), values), round_to<float>(values));
    const Values many = normals(200'000, 3);  // several pieces
    CHECK(cast_values<double, float>(cpu_queue(), many) == round_to<float>(many));
  }

  TEST_CASE("fill: every element and no other") {
    for (std::int64_t count : {0, 1, 7, 70'000}) {
      check_fill<double>(cpu_queue(), count, 0.1, 3);
      check_fill<float>(cpu_queue(), count, -2.5f, 1);
      check_fill<std::int32_t>(cpu_queue(), count, -7, 2);
    }
  }

  TEST_CASE("cast: a negative count is refused") {
    CHECK_THROWS_AS(cast(cpu_queue(), Cast<float, double>{-1, nullptr, nullptr}), Error);
    CHECK_THROWS_AS(fill(cpu_queue(), Fill<float>{-1, 0, nullptr}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("cast: CUDA rounds as the host does") {
    CudaQueue& queue = cuda_queue();
    for (std::int64_t offset : {0, 1, 4}) {  // 1: no wide access is aligned
      const Values values = round_to<float>(corner_values());
      expect_equal(cast_values<float, f16>(queue, values, offset), round_to<f16>(values));
      expect_equal(cast_values<float, bf16>(queue, values, offset), round_to<bf16>(values));
      expect_equal(cast_values<float, float>(queue, values, offset), values);
      expect_equal(cast_values<f16, float>(queue, values, offset), round_to<f16>(values));
      expect_equal(cast_values<bf16, float>(queue, values, offset), round_to<bf16>(values));
    }
    for (std::int64_t count : kCastCases) {
      const Values values = round_to<float>(normals(count, 4));
      CHECK(cast_values<float, f16>(queue, values) == round_to<f16>(values));
      CHECK(cast_values<f16, float>(queue, values) == round_to<f16>(values));
    }
  }

  TEST_CASE("fill: every element and no other on CUDA") {
    for (std::int64_t count : {0, 1, 7, 70'000}) {
      for (std::int64_t offset : {1, 4}) {
        check_fill<float>(cuda_queue(), count, -2.5f, offset);
        check_fill<std::int32_t>(cuda_queue(), count, -7, offset);
      }
    }
  }
}
#endif

}  // namespace fm::test
