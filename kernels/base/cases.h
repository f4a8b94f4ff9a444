// What an op's <op>_cases.h is made of: read by its test and by the benchmark.
#pragma once

#include "kernels/base/dtype.h"

namespace fm {

// Allowed ||got - want|| / ||want|| against a double reference on inputs rounded to the type.
struct Tolerance {
  double f32, f16, bf16;
  constexpr double of(DType type) const {
    return type == DType::f16 ? f16 : type == DType::bf16 ? bf16 : f32;
  }
};

// The least a computation must do: bytes through memory (each input read once, each output written
// once), floating-point operations, special-function results (an exponential, logarithm, sine,
// square root or reciprocal each one), and the floating-point operations that are matrix products,
// counted apart since tensor cores take them.
struct Work {
  double bytes, flops, specials, matrix_flops = 0;
};

}  // namespace fm
