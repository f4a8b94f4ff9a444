#include "models/backbone.h"

#include <map>

#include "engine/profile.h"
#include "models/layers/swiglu_mlp.h"

namespace fm {
namespace {

using Blocks = std::vector<std::string>;

const std::map<std::string, Blocks>& backbones() {
  static const std::map<std::string, Blocks> table = {
      {"mamba", {"mamba"}},
      {"transformer", {"attention"}},
      {"hybrid", {"mamba", "attention"}},
  };
  return table;
}

// A new mixer is one file in layers/ and one row here.
struct BlockKind {
  const char* name;
  Mixer (*make)(ParamStore&, const std::string&, const ModelConfig&);
  bool mlp;  // a SwiGLU branch after the mixer's
};
constexpr BlockKind kBlockKinds[] = {
    {"mamba", make_mamba_mixer, false},
    {"attention", make_attention_mixer, true},
};

const BlockKind& block_kind(const std::string& name) {
  for (const BlockKind& kind : kBlockKinds)
    if (name == kind.name) return kind;
  std::string known;
  for (const BlockKind& kind : kBlockKinds)
    known += (known.empty() ? "" : " or ") + std::string(kind.name);
  fail(Fault::usage, "[model] a block must be ", known, ", got ", name.empty() ? "nothing" : name);
}

}  // namespace

const Blocks* find_backbone(const std::string& name) {
  const auto found = backbones().find(name);
  return found == backbones().end() ? nullptr : &found->second;
}

void check_block_kind(const std::string& kind) {
  block_kind(kind);
}

int Backbone::vectors(const ModelConfig& config) {
  int sum = 0;
  for (const std::string& name : config.blocks)
    sum += AdalnBlock::kVectors * (block_kind(name).mlp ? 2 : 1);
  return sum;
}

Backbone::Backbone(ParamStore& params, Modulation& modulation, const ModelConfig& config) {
  for (std::size_t i = 0; i < config.blocks.size(); ++i) {
    const BlockKind& kind = block_kind(config.blocks[i]);
    const std::string name = concat("blocks.", i);
    std::vector<Mixer> parts = {kind.make(params, name + ".mixer", config)};
    if (kind.mlp)
      parts.push_back(SwigluMlp(params, name + ".mlp", config.d_model, config.mlp_hidden));
    blocks_.emplace_back(modulation, name, config.d_model, std::move(parts));
  }
}

Residual Backbone::operator()(Context& context, Residual stream, const Tensor& modulation) const {
  for (const AdalnBlock& block : blocks_) {
    const ProfileRange range("block");
    Frame frame(context);
    for (const Tensor& tensor : stream.tensors()) frame.adopt(tensor);
    stream = block(context, stream, modulation);
    for (const Tensor& tensor : stream.tensors()) frame.keep(tensor);
  }
  return stream;
}

}  // namespace fm
