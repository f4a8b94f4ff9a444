// The study's report as one self-contained page: tables, curves, bars, grids and the viewer.
#pragma once

#include <filesystem>

#include "engine/io/fields.h"

namespace fm {

// `report` is what fmcompare writes to report.json; what it leaves null or empty is left out of the
// page.
void write_report_page(const std::filesystem::path& path, const Json& report);

}  // namespace fm
