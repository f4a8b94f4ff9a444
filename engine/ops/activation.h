// SiLU, elementwise.
#pragma once

#include "engine/context.h"

namespace fm {

Tensor silu(Context&, const Tensor& x);  // any shape, the compute type

}  // namespace fm
