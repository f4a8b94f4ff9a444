// Embeddings of time and labels.
#pragma once

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

// t [B] in acc type -> sinusoids of 1000 t, [B, width], compute type. No gradient.
Tensor sinusoid_embedding(Context&, const Tensor& t, int width);

// x [B, d] + table[label], table [classes + 1, d], labels [B] int32; the last row is the null
// label.
Tensor add_label(Context&, const Tensor& x, const Tensor& labels, const Parameter& table);

}  // namespace fm
