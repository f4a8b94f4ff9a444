#include "models/layers/modulation.h"

#include "engine/ops/linear.h"

namespace fm {
namespace {

// Neighbours as one parameter, which begins where the first of them does.
Parameter together(const Parameter& first, const Shape& shape) {
  const auto widened = [&](const Tensor& part) { return Tensor{part.data, shape, part.dtype}; };
  Parameter all;
  all.name = "adaln";
  all.shape = shape;
  all.offset = first.offset;
  all.master = widened(first.master);
  all.compute = widened(first.compute);
  all.gradient = widened(first.gradient);
  return all;
}

}  // namespace

Modulation::Modulation(ParamStore& params, int d, int vectors)
    : params_(params),
      d_(d),
      weights_(params.reserve(std::int64_t{vectors} * d * d)),
      biases_(params.reserve(std::int64_t{vectors} * d)) {}

std::int64_t Modulation::add(const std::string& name, int vectors) {
  const std::int64_t first = columns_, columns = std::int64_t{vectors} * d_;
  const Parameter& weight =
      params_.add(name + ".weight", {columns, d_}, init_constant(0), weights_);
  const Parameter& bias = params_.add(name + ".bias", {columns}, init_constant(0), biases_);
  if (first == 0) {
    first_weight_ = &weight;
    first_bias_ = &bias;
  }
  columns_ += columns;
  return first;
}

void Modulation::materialise() {
  FM_CHECK(biases_.next == biases_.end, "[modulation] room for ", biases_.end - biases_.next,
           " more columns is unused");
  weight_ = together(*first_weight_, {columns_, d_});
  bias_ = together(*first_bias_, {columns_});
}

Tensor Modulation::operator()(Context& context, const Tensor& condition) const {
  return linear(context, condition, weight_, &bias_);
}

}  // namespace fm
