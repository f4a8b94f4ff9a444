// One visitor list a struct drives its flags, its --help, its JSON and the checkpoint header.
//
// A struct offers   template <class Self, class V> static void fields(Self& self, V&& visit)
// which calls       visit("d_model", self.d_model, "width of the residual stream")   for every
// field, in order. Field types: int, std::int64_t, std::uint64_t, float, double, bool, std::string
// and vectors of strings or doubles.
#pragma once

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <type_traits>

#include "kernels/base/check.h"

namespace fm {

using Json = nlohmann::ordered_json;

template <class S>
Json to_json(const S& value) {
  Json json = Json::object();
  S::fields(value, [&](const char* name, const auto& field, const char*) { json[name] = field; });
  return json;
}

namespace detail {

template <class F>
const char* json_kind() {
  if constexpr (std::is_same_v<F, bool>) return "true or false";
  else if constexpr (std::is_integral_v<F>) return "a whole number in range";
  else if constexpr (std::is_floating_point_v<F>) return "a number";
  else if constexpr (std::is_same_v<F, std::string>) return "a string";
  else return "a list";
}

template <class F>
bool json_fits(const Json& json) {
  if constexpr (std::is_same_v<F, bool>) return json.is_boolean();
  else if constexpr (std::is_integral_v<F>) {
    if (!json.is_number_integer()) return false;
    if (json.is_number_unsigned())
      return json.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<F>::max());
    const auto number = json.get<std::int64_t>();
    if constexpr (std::is_unsigned_v<F>) return number >= 0;
    else return number >= std::numeric_limits<F>::min() && number <= std::numeric_limits<F>::max();
  } else if constexpr (std::is_floating_point_v<F>) return json.is_number();
  else if constexpr (std::is_same_v<F, std::string>) return json.is_string();
  else {
    if (!json.is_array()) return false;
    for (const auto& item : json)
      if (!json_fits<typename F::value_type>(item)) return false;
    return true;
  }
}

}  // namespace detail

// Reads the fields that `json` has into `value` and leaves the others; returns the names of those
// read. Throws Fault::data for a field of the wrong type and, unless `allow_unknown`, for a name
// that is no field. `where` names the source in messages.
template <class S>
std::set<std::string> from_json(S& value, const Json& json, const std::string& where,
                                bool allow_unknown = false) {
  if (!json.is_object())
    fail(Fault::data, "[config] ", where, " must be a JSON object, got ", json.type_name());
  std::set<std::string> known, read;
  S::fields(value, [&]<class F>(const char* name, F& field, const char*) {
    known.insert(name);
    const auto found = json.find(name);
    if (found == json.end()) return;
    if (!detail::json_fits<F>(*found))
      fail(Fault::data, "[config] ", name, " must be ", detail::json_kind<F>(), ", got ",
           found->dump(), " (", where, ")");
    field = found->template get<F>();
    read.insert(name);
  });
  if (!allow_unknown)
    for (const auto& item : json.items())
      if (!known.count(item.key())) {
        std::string names;
        for (const auto& name : known) names += (names.empty() ? "" : ", ") + name;
        fail(Fault::data, "[config] ", item.key(), " is no field; there are ", names, " (", where,
             ")");
      }
  return read;
}

}  // namespace fm
