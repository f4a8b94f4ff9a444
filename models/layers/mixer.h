// What mixes tokens inside a block: [B, L, d] to [B, L, d], both in the compute type.
#pragma once

#include <functional>
#include <string>

#include "engine/context.h"
#include "engine/params.h"
#include "models/config.h"

namespace fm {

using Mixer = std::function<Tensor(Context&, const Tensor& x)>;

// Declare their parameters under `name` and return the forward function.
Mixer make_attention_mixer(ParamStore&, const std::string& name, const ModelConfig&);
Mixer make_mamba_mixer(ParamStore&, const std::string& name, const ModelConfig&);

}  // namespace fm
