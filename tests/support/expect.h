// Comparisons: relative L2 error with NaN never passing, bit equality, and central differences.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/base/cases.h"
#include "tests/support/arrays.h"

namespace fm::test {

// ||got - want|| / ||want||; infinity for a NaN or a different size. Where `want` is zero, ||got||
// itself.
inline double relative_error(const Values& got, const Values& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

inline void expect_close(const std::string& name, const Values& got, const Values& want,
                         double tolerance) {
  INFO(name, ": ", got.size(), " values, expected ", want.size());
  CHECK(relative_error(got, want) <= tolerance);
}

inline void expect_close(const Results& got, const Results& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, values] : want) {
    REQUIRE(got.count(name) == 1);
    expect_close(name, got.at(name), values, tolerance);
  }
}

inline void expect_same_bits(const Results& a, const Results& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, values] : a) {
    INFO(name);
    REQUIRE(b.count(name) == 1);
    const Values& other = b.at(name);
    REQUIRE(values.size() == other.size());
    CHECK(std::memcmp(values.data(), other.data(), values.size() * sizeof(double)) == 0);
  }
}

// Checks `gradient` of a scalar function of `x` against (f(x+h) - f(x-h)) / 2h, in double, at up to
// `samples` elements spread over x. The error allowed is `tolerance` times the gradient's largest
// element (or 1e-3 of `scale`).
template <class Function>
void check_gradient(const std::string& name, Values x, const Values& gradient, Function&& f,
                    double tolerance = 1e-6, std::size_t samples = 24, double h = 1e-4) {
  INFO("gradient of ", name);
  REQUIRE(x.size() == gradient.size());
  double largest = 0;
  for (double g : gradient) {
    REQUIRE(std::isfinite(g));
    largest = std::max(largest, std::fabs(g));
  }
  const std::size_t stride =
      std::max<std::size_t>(1, x.size() / samples) | 1;  // odd: no column is missed
  for (std::size_t i = 0; i < x.size(); i += stride) {
    const double at = x[i];
    x[i] = at + h;
    const double up = f(x);
    x[i] = at - h;
    const double down = f(x);
    x[i] = at;
    INFO("element ", i, ": ", gradient[i], " against ", (up - down) / (2 * h));
    CHECK(std::fabs((up - down) / (2 * h) - gradient[i]) <= tolerance * std::max(largest, 1e-3));
  }
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace fm::test
