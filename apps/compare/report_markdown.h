// A report as Markdown, to be read beside the files it points to.
#pragma once

#include <string>

#include "engine/io/fields.h"

namespace fm {

// Charts are linked as report["plots"][i]["file"], grids as grids/<backbone>.png and
// grids/<backbone>-nearest.png.
std::string report_markdown(const Json& report);
// Of a sweep alone.
std::string sweep_markdown(const Json& sweep);

}  // namespace fm
