#include "models/frechet.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/check.h"

namespace fm {
namespace {

using Matrix = std::vector<double>;  // [width, width]

constexpr int kSweeps = 60;  // convergence is quadratic: a sweep too many would be the twelfth

double square_sum_off_diagonal(const Matrix& a, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = i + 1; j < n; ++j) sum += a[i * n + j] * a[i * n + j];
  return sum;
}

// Columns p and q become c x - s y and s x + c y.
void rotate_columns(Matrix& a, std::size_t n, std::size_t p, std::size_t q, double c, double s) {
  for (std::size_t k = 0; k < n; ++k) {
    const double x = a[k * n + p], y = a[k * n + q];
    a[k * n + p] = c * x - s * y;
    a[k * n + q] = s * x + c * y;
  }
}
void rotate_rows(Matrix& a, std::size_t n, std::size_t p, std::size_t q, double c, double s) {
  for (std::size_t k = 0; k < n; ++k) {
    const double x = a[p * n + k], y = a[q * n + k];
    a[p * n + k] = c * x - s * y;
    a[q * n + k] = s * x + c * y;
  }
}

Matrix product(const Matrix& a, const Matrix& b, std::size_t n) {
  Matrix c(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t k = 0; k < n; ++k)
      for (std::size_t j = 0; j < n; ++j) c[i * n + j] += a[i * n + k] * b[k * n + j];
  return c;
}

// Rounding may leave an eigenvalue of a covariance just below zero.
double root(double eigenvalue) {
  return std::sqrt(std::max(eigenvalue, 0.0));
}

Matrix square_root(const Matrix& a, std::size_t n) {
  const SymmetricEigen eigen = symmetric_eigen(a, static_cast<int>(n));
  Matrix scaled(n * n), transposed(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t k = 0; k < n; ++k) {
      scaled[i * n + k] = eigen.vectors[i * n + k] * root(eigen.values[k]);
      transposed[k * n + i] = eigen.vectors[i * n + k];
    }
  return product(scaled, transposed, n);
}

}  // namespace

FeatureStatistics feature_statistics(const float* features, std::int64_t count, int width) {
  FM_CHECK(count >= 2 && width > 0, "[frechet] a covariance needs two rows at least, got [", count,
           ", ", width, "]");
  const auto n = static_cast<std::size_t>(width);
  FeatureStatistics s{width, std::vector<double>(n), Matrix(n * n)};
  for (std::int64_t row = 0; row < count; ++row)
    for (std::size_t i = 0; i < n; ++i) s.mean[i] += features[row * width + static_cast<int>(i)];
  for (double& mean : s.mean) mean /= static_cast<double>(count);
  std::vector<double> centred(n);
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::size_t i = 0; i < n; ++i)
      centred[i] = features[row * width + static_cast<int>(i)] - s.mean[i];
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) s.covariance[i * n + j] += centred[i] * centred[j];
  }
  for (double& c : s.covariance) c /= static_cast<double>(count - 1);
  return s;
}

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b) {
  FM_CHECK(a.width == b.width && a.width > 0, "[frechet] features must have one width, got ",
           a.width, " and ", b.width);
  const auto n = static_cast<std::size_t>(a.width);
  double distance = 0;
  for (std::size_t i = 0; i < n; ++i) {
    distance += (a.mean[i] - b.mean[i]) * (a.mean[i] - b.mean[i]);
    distance += a.covariance[i * n + i] + b.covariance[i * n + i];
  }
  const Matrix half = square_root(a.covariance, n);
  Matrix inner = product(product(half, b.covariance, n), half, n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < i; ++j)
      inner[i * n + j] = inner[j * n + i] = (inner[i * n + j] + inner[j * n + i]) / 2;
  for (const double value : symmetric_eigen(inner, a.width).values) distance -= 2 * root(value);
  return std::max(distance, 0.0);
}

SymmetricEigen symmetric_eigen(const std::vector<double>& matrix, int width) {
  const auto n = static_cast<std::size_t>(width);
  FM_CHECK(matrix.size() == n * n, "[eigen] the matrix must be ", width, " x ", width, ", got ",
           matrix.size(), " elements");
  Matrix a = matrix;
  SymmetricEigen result{std::vector<double>(n), Matrix(n * n)};
  for (std::size_t i = 0; i < n; ++i) result.vectors[i * n + i] = 1;
  const double norm = std::inner_product(a.begin(), a.end(), a.begin(), 0.0);
  FM_CHECK(std::isfinite(norm), "[eigen] the matrix must be finite");
  int sweep = 0;
  // Off the diagonal, less than double's rounding of what is on it.
  while (square_sum_off_diagonal(a, n) > 1e-32 * norm) {
    FM_CHECK(++sweep <= kSweeps, "[eigen] no convergence after ", kSweeps, " sweeps");
    for (std::size_t p = 0; p < n; ++p)
      for (std::size_t q = p + 1; q < n; ++q) {
        const double off = a[p * n + q];
        if (off == 0) continue;
        // The smaller of the two angles that make a[p, q] zero.
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * off);
        const double t = std::copysign(1.0, theta) / (std::fabs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        rotate_columns(a, n, p, q, c, s);
        rotate_rows(a, n, p, q, c, s);
        a[p * n + q] = a[q * n + p] = 0;
        rotate_columns(result.vectors, n, p, q, c, s);
      }
  }
  for (std::size_t i = 0; i < n; ++i) result.values[i] = a[i * n + i];
  return result;
}

}  // namespace fm
