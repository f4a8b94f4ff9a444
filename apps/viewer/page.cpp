#include "apps/viewer/page.h"

#include <cstdio>

#include "apps/markup.h"

namespace fm {
namespace {

// Outside of strings JSON has none of the three characters.
std::string json_for_script(const Json& data) {
  std::string out;
  for (const char c : data.dump(-1, ' ', false, Json::error_handler_t::replace)) {
    char escaped[8];
    if (c == '<' || c == '>' || c == '&') {
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

std::string make_page(std::string_view name, const std::string& title, const Json& data) {
  std::string page;
  std::string_view rest = page_source(name);
  FM_CHECK(!rest.empty(), "[page] there is no page ", name);
  for (std::size_t open; (open = rest.find("{{")) != rest.npos;) {
    const std::size_t close = rest.find("}}", open);
    FM_CHECK(close != rest.npos, "[page] ", name, " has a {{ without its }}");
    const std::string_view key = rest.substr(open + 2, close - open - 2);
    page += rest.substr(0, open);
    rest.remove_prefix(close + 2);
    if (key == "title") {
      page += markup_text(title);
    } else if (key == "data") {
      page += json_for_script(data);
    } else {
      const std::string_view source = page_source(key);
      FM_CHECK(!source.empty(), "[page] ", name, " asks for ", key, ", which is not there");
      page += source;
    }
  }
  page += rest;
  return page;
}

}  // namespace fm
