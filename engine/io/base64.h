// Base64 (RFC 4648, section 4), to carry files inside text.
#pragma once

#include <string>
#include <string_view>

namespace fm {

std::string base64(std::string_view bytes);

// "data:image/png;base64,...", what a page or an SVG takes in place of a file.
inline std::string png_uri(std::string_view png) {
  return "data:image/png;base64," + base64(png);
}

}  // namespace fm
