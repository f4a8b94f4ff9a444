// Multi-head attention on the product of the qkv layer.
#pragma once

#include "engine/context.h"

namespace fm {

// qkv [B, L, 3 d] (q of every head, k of every head, v of every head) -> [B, L, d]. heads divides
// d.
Tensor attention(Context&, const Tensor& qkv, int heads);

}  // namespace fm
