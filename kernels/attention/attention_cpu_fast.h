// What the two CPU paths of attention share: where a head's rows are, and the float path's entry.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

namespace fm::attention {

// The rows of one head of one image: in [B, L, 3, H, hd], in [B, L, H, hd] and in [B, H, L].
template <class T>
class Head {
 public:
  Head(const AttentionShape& s, T* qkv, int image, int head)
      : width_(static_cast<std::int64_t>(s.heads) * s.head_dim),
        first_(static_cast<std::int64_t>(image) * s.length),
        column_(static_cast<std::int64_t>(head) * s.head_dim),
        stats_((static_cast<std::int64_t>(image) * s.heads + head) * s.length),
        qkv_(qkv + first_ * 3 * width_ + column_) {}

  T* q(int row) const { return qkv_ + row * 3 * width_; }
  T* k(int row) const { return q(row) + width_; }
  T* v(int row) const { return q(row) + 2 * width_; }
  template <class U>
  U* o_row(U* o, int row) const {
    return o + (first_ + row) * width_ + column_;
  }
  std::int64_t stat(int row) const { return stats_ + row; }

 private:
  std::int64_t width_, first_, column_, stats_;
  T* qkv_;
};

void forward_head_fast(const AttentionForward<float>&, int image, int head);
void backward_head_fast(const AttentionBackward<float>&, int image, int head);

}  // namespace fm::attention
