// Self-contained pages: the files of apps/viewer/page, which the build carries into the program,
// and data as JSON. A page needs no network and no server.
#pragma once

#include <string>
#include <string_view>

#include "engine/io/fields.h"

namespace fm {

// The text of apps/viewer/page/<name>; empty where there is no such file.
std::string_view page_source(std::string_view name);

// The source `name` with its {{...}} filled in: {{title}} by the title, {{data}} by the data, any
// other by the source of that name. What is filled in is not looked through again. Nothing in title
// or data can end the element it stands in: the title is escaped for HTML, and "<", ">" and "&" of
// the data are written as JSON's \u003c, \u003e and \u0026; bytes that are no UTF-8 become U+FFFD.
std::string make_page(std::string_view name, const std::string& title, const Json& data);

}  // namespace fm
