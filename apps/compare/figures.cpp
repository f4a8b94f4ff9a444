#include "apps/compare/figures.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace fm {

Json statistic(const std::vector<double>& all) {
  std::vector<double> values;
  for (const double value : all)
    if (std::isfinite(value)) values.push_back(value);
  if (values.empty()) return nullptr;
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / n;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  Json json;
  json["mean"] = mean;
  json["sd"] = values.size() > 1 ? Json(std::sqrt(squares / (n - 1))) : Json();
  json["min"] = *least;
  json["max"] = *most;
  json["n"] = values.size();
  return json;
}

double number(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string figure(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string figure(const Json& value, int digits) {
  return figure(number(value), digits);
}

std::string significant(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

std::string spread(const Json& statistic, double scale, int digits) {
  if (statistic.is_null()) return "-";
  std::string text = figure(number(statistic.at("mean")) * scale, digits);
  if (!statistic.at("sd").is_null())
    text += " ± " + figure(number(statistic.at("sd")) * scale, digits);
  return text;
}

}  // namespace fm
