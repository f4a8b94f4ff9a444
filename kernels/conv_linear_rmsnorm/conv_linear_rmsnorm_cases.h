// Shapes, tolerances and work of conv_linear_rmsnorm.
#pragma once

#include "kernels/base/cases.h"
#include "kernels/causal_conv1d/causal_conv1d_cases.h"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm.h"
#include "kernels/linear_rmsnorm/linear_rmsnorm_cases.h"

namespace fm {

struct ConvLinearRmsNormCase {
  ConvCase conv;
  LinearRmsNormShape layer;
};

// A convolution of `width` taps and the layer after it; x is the first part of wider rows.
constexpr ConvLinearRmsNormCase conv_layer(int batch, int length, int directions, int in, int width,
                                           LinearRmsNormShape segments) {
  ConvLinearRmsNormCase c{
      {{batch, length, directions * in, directions, width}, 2 * directions * in}, segments};
  c.layer.rows = std::int64_t{batch} * length;
  c.layer.groups = directions;
  c.layer.in = in;
  c.layer.eps = 1e-5;
  return c;
}

inline constexpr ConvLinearRmsNormCase kConvLinearRmsNormCases[] = {
    conv_layer(5, 196, 2, 256, 4, {0, 0, 0, 3, {8, 64, 64}, 0}),  // the paper's, fewer images
    conv_layer(3, 197, 1, 128, 4, {0, 0, 0, 3, {8, 64, 64}, 0}),  // one direction, tiles cross
    conv_layer(97, 7, 2, 64, 4, {0, 0, 0, 3, {8, 16, 16}, 0}),    // an image as long as a window
    conv_layer(60, 9, 2, 64, 4, {0, 0, 0, 3, {8, 32, 32}, 0}),    // every tile has a beginning
    conv_layer(1, 1000, 2, 192, 4, {0, 0, 0, 2, {16, 24}, 0}),    // one image
    conv_layer(150, 4, 2, 64, 4, {0, 0, 0, 3, {8, 16, 16}, 0}),   // shorter than a window
    conv_layer(3, 196, 2, 64, 3, {0, 0, 0, 3, {8, 16, 16}, 0}),   // three taps
    conv_layer(2, 33, 2, 13, 4, {0, 0, 0, 3, {3, 5, 5}, 0}),      // in no panels
};
inline constexpr ConvLinearRmsNormCase kConvLinearRmsNormPaper =
    conv_layer(256, 196, 2, 256, 4, {0, 0, 0, 3, {8, 64, 64}, 0});

// f16, bf16: raw and y are of a rounded u, whose own half an ulp (2^-12, 2^-9) hundreds of products
// average.
inline constexpr Tolerance kConvLinearRmsNormTolerance = {1e-5, 6e-4, 5e-3};

// u is written and not read again.
inline Work conv_linear_rmsnorm_work(const ConvLinearRmsNormCase& c, DType t) {
  const Work conv = conv_forward_work(c.conv.shape, t),
             layer = linear_rmsnorm_forward_work(c.layer, t);
  return {conv.bytes + layer.bytes - conv_elements(c.conv.shape) * static_cast<double>(size_of(t)),
          conv.flops + layer.flops, conv.specials + layer.specials, layer.matrix_flops};
}

}  // namespace fm
