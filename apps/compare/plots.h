// A report's charts.
#pragma once

#include "engine/io/fields.h"

namespace fm {

// [{"title", "svg", "file"}]: "file" is a path within the report's folder. A chart without data is
// left out. `report` is what gather_report() gives.
Json report_plots(const Json& report);

// Of a sweep alone (the object in a report's "sweep").
Json sweep_plot(const Json& sweep);

}  // namespace fm
