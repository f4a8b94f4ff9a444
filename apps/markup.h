// Text inside HTML and SVG.
#pragma once

#include <string>

namespace fm {

// `text` with the characters that would end it, or an attribute's value, replaced.
inline std::string markup_text(const std::string& text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  return out;
}

}  // namespace fm
