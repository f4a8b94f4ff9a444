// The configuration of a checkpoint's model: from its metadata, or from a given file and the
// tensors' shapes.
#pragma once

#include <optional>

#include "engine/io/fields.h"
#include "engine/io/safetensors.h"
#include "models/config.h"

namespace fm {

// metadata["config"] where present; otherwise `given` (a JSON object with some or all fields) and,
// for the fields it leaves out, the shapes of the tensors. Throws Fault::data naming the fields
// that neither decides.
ModelConfig checkpoint_config(const SafetensorsFile& file, const std::optional<Json>& given);

}  // namespace fm
