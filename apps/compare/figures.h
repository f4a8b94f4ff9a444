// Figures of a report as text, and their statistics over seeds.
#pragma once

#include <string>
#include <vector>

#include "engine/io/fields.h"

namespace fm {

// {"mean", "sd" (null for one value), "min", "max", "n"}; null where there is no value. Values that
// are not finite do not count.
Json statistic(const std::vector<double>& values);

// The number of a JSON value; NaN for null.
double number(const Json& value);

// "12.35"; "-" for null and what is not finite.
std::string figure(double value, int digits);
std::string figure(const Json& value, int digits);
// The same with so many significant digits.
std::string significant(double value, int digits);
// "0.1807 +- 0.0012" (the sign in Unicode), of values times `scale`.
std::string spread(const Json& statistic, double scale, int digits);

}  // namespace fm
