// Quantiles of a few measurements.
#pragma once

#include <algorithm>
#include <vector>

namespace fm {

// The value at `q` (0 to 1) of the sorted values, the nearest one; 0 where there is none.
inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

}  // namespace fm
