// How many floating-point operations a model asks for, from its shapes alone.
//
// A multiplication and an addition are two. Counted: every matrix product (2 m n k), attention's
// two (all pairs: it is not causal), the convolution, and the selective scan; not counted: norms,
// activations, gates and the optimizer, together below 2 % at the paper's shape. The scan, of each
// channel, token and state: dt A and its exponential (2), the state's decay, its input (dt u) B and
// their sum (3), and C's product with the sum over states (2).
// A backward pass is taken for two forward ones, as of a matrix product it is: what an
// implementation computes a second time to save memory is its own affair.
#pragma once

#include "models/config.h"

namespace fm {

// Of one image.
struct Flops {
  double projections = 0;  // matrix products of tokens, patches in and out included
  double condition = 0;    // the time's MLP and the blocks' modulation, once an image
  double attention = 0;    // scores and weighted sums
  double convolution = 0;
  double scan = 0;
  double total() const { return projections + condition + attention + convolution + scan; }
};

Flops forward_flops(const ModelConfig& config);
// Of a training step: forward and backward of a batch.
inline double step_flops(const ModelConfig& config, int batch) {
  return 3 * forward_flops(config).total() * batch;
}

}  // namespace fm
