// The Frechet distance between two clouds of features, each taken for a normal distribution:
// |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). Source: Dowson and Landau 1982; Heusel et
// al. 2017, who take it of a classifier's features to compare images. All in double.
#pragma once

#include <cstdint>
#include <vector>

namespace fm {

struct FeatureStatistics {
  int width = 0;
  std::vector<double> mean;        // [width]
  std::vector<double> covariance;  // [width, width], of n - 1
};

// features [count, width]; at least two rows.
FeatureStatistics feature_statistics(const float* features, std::int64_t count, int width);

// At least 0. The order of the arguments changes rounding alone.
double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b);

// matrix = sum over k of values[k] v_k v_k^T, where v_k is column k of `vectors` [width, width].
struct SymmetricEigen {
  std::vector<double> values;  // in no order
  std::vector<double> vectors;
};
// Of a symmetric matrix [width, width], by cyclic Jacobi rotations (Golub and Van Loan, Matrix
// Computations, section 8.5): at 64 rows some 20 ms, with the same bits on every machine and no
// LAPACK to ask of an OpenBLAS that may have been built without.
SymmetricEigen symmetric_eigen(const std::vector<double>& matrix, int width);

}  // namespace fm
