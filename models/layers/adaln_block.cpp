#include "models/layers/adaln_block.h"

namespace fm {

AdalnBlock::AdalnBlock(ParamStore& params, const std::string& name, int d, std::vector<Mixer> parts)
    : d_(d),
      parts_(std::move(parts)),
      adaln_(params, name + ".adaln", d, 3 * static_cast<int>(parts_.size()) * d, true,
             LinearLayer::Start::zero) {}

Residual AdalnBlock::operator()(Context& context, Residual stream, const Tensor& condition) const {
  const Tensor modulation = adaln_(context, condition);
  std::int64_t column = 0;
  const auto next = [&] {
    column += d_;
    return Columns(modulation, column - d_, d_);
  };
  for (const Mixer& part : parts_) {
    const Columns shift = next(), scale = next(), gate = next();
    const Tensor m = residual_norm(context, stream, shift, scale);
    stream.pending = {part(context, m), gate};
  }
  return stream;
}

}  // namespace fm
