// The published study: its table, its decision, and where its text and what is measured here part.
#pragma once

#include "engine/io/fields.h"

namespace fm {

// {"decision", "rows": [{"name", "label", "params", "half_loss", "step_ms", "memory_gb", "minutes",
// "samples"}]}. half_loss: see the disagreement about it.
Json published_study();

// [{"claim", "published", "measured", "note"}]: `report` has everything else of a report.
Json disagreements(const Json& report);

}  // namespace fm
