// The operation as the two it is made of: the CPU's form, and CUDA's where it has no kernel of its
// own for a shape.
#pragma once

#include <algorithm>

#include "kernels/linear_rmsnorm/linear_rmsnorm.h"

namespace fm {

template <class T, class Q>
void linear_rmsnorm_forward_in_parts(Q& queue, const LinearRmsNormForward<T>& p) {
  linear_forward(queue,
                 LinearForward<T, T>{
                     .shape = p.shape.product(), .x = p.x, .w = p.w, .bias = nullptr, .y = p.raw});
  RmsNormForward<T> norm{.shape = p.shape.norm(), .x = p.raw, .weight = {}, .y = p.y};
  std::copy_n(p.weight, p.shape.segments, norm.weight);
  rmsnorm_forward(queue, norm);
}

template <class T, class Q>
void linear_rmsnorm_backward_in_parts(Q& queue, const LinearRmsNormBackward<T>& p) {
  RmsNormBackward<T> norm{.shape = p.shape.norm(),
                          .x = p.raw,
                          .weight = {},
                          .dy = p.dy,
                          .dx = p.draw,
                          .dweight = {},
                          .workspace = p.workspace};
  std::copy_n(p.weight, p.shape.segments, norm.weight);
  std::copy_n(p.dweight, p.shape.segments, norm.dweight);
  rmsnorm_backward(queue, norm);
  linear_backward_input(queue, LinearBackwardInput<T>{.shape = p.shape.product(),
                                                      .dy = p.draw,
                                                      .w = p.w,
                                                      .dx = p.dx,
                                                      .accumulate = p.accumulate});
}

}  // namespace fm
