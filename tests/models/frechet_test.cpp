#include "models/frechet.h"

#include <cmath>

#include "tests/support/expect.h"
#include "tests/support/files.h"

namespace fm::test {
namespace {

FeatureStatistics diagonal(const Values& mean, const Values& variances) {
  const std::size_t n = mean.size();
  FeatureStatistics s{static_cast<int>(n), mean, Values(n * n)};
  for (std::size_t i = 0; i < n; ++i) s.covariance[i * n + i] = variances[i];
  return s;
}

// A A^T of a random A [n, rank].
Values gram(int n, int rank, unsigned seed) {
  const Values a = normals(std::int64_t{n} * rank, seed);
  Values c(static_cast<std::size_t>(n * n));
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < rank; ++k)
        c[static_cast<std::size_t>(i * n + j)] +=
            a[static_cast<std::size_t>(i * rank + k)] * a[static_cast<std::size_t>(j * rank + k)];
  return c;
}

void check_eigen(const Values& matrix, int n) {
  const SymmetricEigen e = symmetric_eigen(matrix, n);
  Values rebuilt(matrix.size()), gram(matrix.size()), identity(matrix.size());
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      const auto at = static_cast<std::size_t>(i * n + j);
      identity[at] = i == j;
      for (int k = 0; k < n; ++k) {
        const auto ik = static_cast<std::size_t>(i * n + k),
                   jk = static_cast<std::size_t>(j * n + k);
        rebuilt[at] += e.vectors[ik] * e.vectors[jk] * e.values[static_cast<std::size_t>(k)];
        gram[at] += e.vectors[ik] * e.vectors[jk];
      }
    }
  expect_close("rebuilt", rebuilt, matrix, 1e-13);
  expect_close("orthogonal", gram, identity, 1e-13);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("frechet: the eigen-decomposition rebuilds the matrix") {
    check_eigen({3}, 1);
    check_eigen({2, -1, -1, 2}, 2);
    check_eigen(diagonal({0, 0, 0}, {5, 5, 5}).covariance, 3);
    check_eigen(Values(16), 4);
    for (int n : {3, 7, 64}) check_eigen(gram(n, n, 1), n);
    check_eigen(gram(20, 3, 2), 20);  // rank 3
    Values graded = gram(12, 12, 3);
    for (int i = 0; i < 12; ++i)
      for (int j = 0; j < 12; ++j)
        graded[static_cast<std::size_t>(i * 12 + j)] *= std::pow(10.0, -(i + j));
    check_eigen(graded, 12);
    Values bad = gram(3, 3, 4);
    bad[4] = std::nan("");
    CHECK_THROWS_AS(symmetric_eigen(bad, 3), Error);
  }

  TEST_CASE("frechet: mean and covariance of rows") {
    const float rows[] = {1, 2, 3, 6, 5, 4};
    const FeatureStatistics s = feature_statistics(rows, 3, 2);
    CHECK(s.mean == Values{3, 4});
    CHECK(s.covariance == Values{4, 2, 2, 4});
    CHECK_THROWS_AS(feature_statistics(rows, 1, 2), Error);
  }

  TEST_CASE("frechet: by hand where the covariances commute") {
    const FeatureStatistics a = diagonal({1, 2, 3}, {4, 9, 0}),
                            b = diagonal({1, 0, 3}, {1, 25, 16});
    CHECK(frechet_distance(a, b) == doctest::Approx(4 + 1 + 4 + 16));
    CHECK(frechet_distance(a, a) < 1e-12);
  }

  TEST_CASE("frechet: two dimensions, any covariances") {
    // The trace of the root of a 2 x 2 product M is sqrt(tr M + 2 sqrt(det M)).
    for (unsigned seed : {1u, 2u, 3u}) {
      const FeatureStatistics a{2, {0, 1}, gram(2, 2, seed)}, b{2, {2, 5}, gram(2, 2, seed + 10)};
      const Values &x = a.covariance, &y = b.covariance;
      const double trace = x[0] * y[0] + 2 * x[1] * y[1] + x[3] * y[3];
      const double det = (x[0] * x[3] - x[1] * x[1]) * (y[0] * y[3] - y[1] * y[1]);
      const double want =
          4 + 16 + x[0] + x[3] + y[0] + y[3] - 2 * std::sqrt(trace + 2 * std::sqrt(det));
      CHECK(frechet_distance(a, b) == doctest::Approx(want).epsilon(1e-12));
    }
  }

  TEST_CASE("frechet: symmetric, zero to itself, also where covariances are singular") {
    const FeatureStatistics a{64, normals(64, 1), gram(64, 64, 2)};
    const FeatureStatistics b{64, normals(64, 3), gram(64, 10, 4)};
    const double there = frechet_distance(a, b);
    CHECK(there > 0);
    // The root of an eigenvalue that should be zero is sqrt(eps) of the largest.
    CHECK(frechet_distance(b, a) == doctest::Approx(there).epsilon(1e-6));
    CHECK(frechet_distance(a, a) < 1e-9 * there);
    CHECK(frechet_distance(b, b) < 1e-4 * there);
    CHECK_THROWS_AS(frechet_distance(a, diagonal({0}, {1})), Error);
  }
}

}  // namespace fm::test
