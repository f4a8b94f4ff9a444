// The contract of attention's entry points, checked by both backends.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/base/check.h"

namespace fm {

template <class T>
void check_attention_shape(const AttentionShape& s) {
  const std::string got = concat(" (qkv: [", s.batch, ", ", s.length, ", 3, ", s.heads, ", ",
                                 s.head_dim, "] ", name_of(dtype_of<T>()), ")");
  FM_CHECK(s.head_dim > 0 && s.head_dim % 8 == 0 && s.head_dim <= 128,
           "[attention] head_dim must be a multiple of 8, at most 128, got ", s.head_dim, got);
  FM_CHECK(s.batch > 0 && s.heads > 0 && s.length > 0 && s.length <= 1 << 27,
           "[attention] batch, length and heads must be positive, length at most 2^27, got ",
           s.batch, ", ", s.length, " and ", s.heads, got);
}

}  // namespace fm
