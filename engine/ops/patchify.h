// Images to tokens and back.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// image [B, C, H, W] in acc type -> patchify(image) w^T + b + position [B, L, d] in the residual
// stream's type; w [d, C p p], b [d], position [L, d] in acc type, fixed. The image is data: it has
// no gradient.
Tensor embed_patches(Context&, const Tensor& image, int patch, const Parameter& w,
                     const Parameter& b, const Tensor& position);

// tokens [B, L, C p p] in acc type -> image [B, channels, H, W] in acc type, `size` its H and W.
Tensor unpatchify(Context&, const Tensor& tokens, int channels, int size, int patch);

}  // namespace fm
