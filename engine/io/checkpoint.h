// Checkpoints: one safetensors file with a model's parameters and all that a bitwise resume needs.
//
// Written: `model.<name>` for every parameter, `ema.<name>` and `optim.m.<name>`, `optim.v.<name>`
// where present, and string metadata. Read: also files of other tools, bare (`blocks.0...`) or
// wrapped (`state_dict.model.blocks.0...`); the layout is decided by looking at the keys.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/safetensors.h"
#include "engine/params.h"

namespace fm {

enum class Weights { raw, ema };

void write_checkpoint(const std::filesystem::path& path, ParamStore& params,
                      const Metadata& metadata);

// The prefix under which the file keeps the tensors of these names: the one that completes most of
// them ("" for a bare file). A prefix with a segment that speaks of an average ("ema") counts as
// Weights::ema, any other as raw; for raw weights, an average serves where there is nothing else.
// Returns false where no name is found under any prefix.
bool find_prefix(const SafetensorsFile& file, const std::vector<std::string>& names,
                 Weights weights, std::string& prefix);

// Reads the parameters' master weights. Throws Fault::data with the names of what is missing,
// unexpected or misshapen.
void read_weights(const SafetensorsFile& file, ParamStore& params, Weights weights);
bool has_weights(const SafetensorsFile& file, const ParamStore& params, Weights weights);

// Reads everything a resume needs: master weights, m, v, and the EMA where the store has one.
void read_training_state(const SafetensorsFile& file, ParamStore& params);

}  // namespace fm
