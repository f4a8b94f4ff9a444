#include "models/layers/adaln_block.h"

namespace fm {

AdalnBlock::AdalnBlock(Modulation& modulation, const std::string& name, int d,
                       std::vector<Mixer> parts)
    : d_(d),
      parts_(std::move(parts)),
      first_column_(modulation.add(name + ".adaln", kVectors * static_cast<int>(parts_.size()))) {}

Residual AdalnBlock::operator()(Context& context, Residual stream, const Tensor& modulation) const {
  std::int64_t column = first_column_;
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
