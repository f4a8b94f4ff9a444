// The trajectory viewer as a page of its own.
#pragma once

#include <filesystem>
#include <string>

#include "engine/io/fields.h"

namespace fm {

// `viewer`: what viewer_frame() of apps/compare/trajectory.h gives and, as "sets", one or two
// objects {"kind": "classes" or "seeds", "title", "cfg_scale", "rows": trajectory_rows(),
// "backbones": [{"name", "label", "states", "velocities"}]}, the pictures as PNG data URIs; "seed"
// where the noise is of one. Returns the page's size in bytes.
std::size_t write_viewer_page(const std::filesystem::path& path, const std::string& title,
                              const Json& viewer);

}  // namespace fm
