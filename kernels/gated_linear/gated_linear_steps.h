// gated_linear as its two steps, a product and an elementwise pass, with a and b in memory between
// them: the reference, and what runs where one kernel does not pay.
#pragma once

#include "kernels/gated_linear/gated_linear.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"

namespace fm {

template <class T, class Q>
void gated_linear_forward_steps(Q& queue, const GatedLinearForward<T>& p) {
  const auto [rows, in, hidden] = p.shape;
  linear_forward(queue, LinearForward<T, T>{.shape = {.rows = rows, .in = in, .out = 2 * hidden},
                                            .x = p.x,
                                            .w = p.w,
                                            .bias = p.bias,
                                            .y = p.ab});
  swiglu_forward(queue, SwigluForward<T>{{rows, hidden}, p.ab, p.y});
}

template <class T, class Q>
void gated_linear_backward_steps(Q& queue, const GatedLinearBackward<T>& p) {
  swiglu_backward(queue, SwigluBackward<T>{.shape = {p.shape.rows, p.shape.hidden},
                                           .ab = p.dab,
                                           .dy = p.dy,
                                           .dab = p.dab,
                                           .y = p.y});
}

}  // namespace fm
