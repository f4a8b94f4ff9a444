#include "kernels/base/check.h"
#include "kernels/conv_linear_rmsnorm/conv_linear_rmsnorm.h"

namespace fm {

void conv_linear_rmsnorm_check(const ConvShape& conv, const LinearRmsNormShape& layer) {
  FM_CHECK(std::int64_t{conv.batch} * conv.length == layer.rows &&
               conv.directions == layer.groups && conv.channels == layer.groups * layer.in,
           "[conv_linear_rmsnorm] the layer takes ", layer.rows, " rows of ", layer.groups, " x ",
           layer.in, ", the convolution makes ", conv.batch, " x ", conv.length, " of ",
           conv.channels, " channels in ", conv.directions, " directions");
}

template <class T>
void conv_linear_rmsnorm_forward(CpuQueue& queue, const ConvLinearRmsNormForward<T>& p) {
  conv_linear_rmsnorm_check(p.conv.shape, p.layer.shape);
  conv_forward(queue, p.conv);
  linear_rmsnorm_forward(queue, p.layer);
}

template void conv_linear_rmsnorm_forward(CpuQueue&, const ConvLinearRmsNormForward<float>&);
template void conv_linear_rmsnorm_forward(CpuQueue&, const ConvLinearRmsNormForward<double>&);

}  // namespace fm
