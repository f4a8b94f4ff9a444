// Images to tokens and back.
#pragma once

#include "engine/context.h"

namespace fm {

// image [B, C, H, W] in acc type -> tokens [B, L, C p p] in the compute type. No gradient: images
// are data.
Tensor patchify(Context&, const Tensor& image, int patch);

// tokens [B, L, C p p] in acc type -> image [B, channels, H, W] in acc type, `size` its H and W.
Tensor unpatchify(Context&, const Tensor& tokens, int channels, int size, int patch);

}  // namespace fm
