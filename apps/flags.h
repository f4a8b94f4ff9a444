// A struct's fields (engine/io/fields.h) as command-line flags: d_model is --d-model.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "engine/io/fields.h"

namespace fm {

inline std::string flag_of(std::string field) {
  std::replace(field.begin(), field.end(), '_', '-');
  return "--" + field;
}

// Flags are parsed into a copy of the defaults; given() then lays those the user gave over another
// value, so that flags beat a configuration file that is read later.
template <class S>
class Flags {
 public:
  // `skip`: fields without a flag of their own.
  Flags(CLI::App& app, const std::string& group, const std::vector<std::string>& skip = {}) {
    S::fields(parsed_, [&]<class F>(const char* name, F& field, const char* help) {
      if (std::find(skip.begin(), skip.end(), name) != skip.end()) {
        options_.push_back(nullptr);
        return;
      }
      CLI::Option* option = app.add_option(flag_of(name), field, help);
      // A switch may stand alone, which means its default: --ssm-norm, --ssm-norm false.
      if constexpr (std::is_same_v<F, bool>)
        option->expected(0, 1)->type_name("BOOL")->default_str(field ? "true" : "false");
      if constexpr (requires { typename F::value_type; } && !std::is_same_v<F, std::string>)
        option->delimiter(',');
      options_.push_back(option->group(group));
    });
  }
  Flags(const Flags&) = delete;  // options point into parsed_
  Flags& operator=(const Flags&) = delete;

  // Lays the fields the user gave over `value`.
  void given(S& value) const {
    std::size_t i = 0;
    S::fields(parsed_, [&]<class F>(const char*, const F& from, const char*) {
      const std::size_t index = i++;
      if (!options_[index] || options_[index]->count() == 0) return;
      std::size_t k = 0;
      S::fields(value, [&]<class G>(const char*, G& to, const char*) {
        if constexpr (std::is_same_v<F, G>)
          if (k == index) to = from;
        ++k;
      });
    });
  }

 private:
  S parsed_{};
  std::vector<CLI::Option*> options_;
};

}  // namespace fm
