// Everything a report says, gathered from run folders (no weights are needed): tables, curves,
// decision, pictures as data URIs, the viewer's trajectories.
#pragma once

#include <filesystem>

#include "engine/io/fields.h"

namespace fm {

// Of the evaluated runs in folder/runs. "plots" is left empty. Throws Fault::data where there is
// none.
Json gather_report(const std::filesystem::path& folder);

}  // namespace fm
