#include "models/config.h"

#include "kernels/base/check.h"
#include "models/backbone.h"

namespace fm {
namespace {

void check_range(const char* field, int value, int low, int high) {
  FM_CHECK(value >= low && value <= high, "[model] ", field, " must be ", low, " to ", high,
           ", got ", value);
}

void check_multiple(const char* field, int value, int of) {
  FM_CHECK(value > 0 && value % of == 0, "[model] ", field, " must be a positive multiple of ", of,
           ", got ", value, "; ", value < of ? of : value / of * of, " would work");
}

constexpr int kLargest = 1 << 16;  // of any width: products of two stay far from overflow

}  // namespace

void validate(const ModelConfig& c) {
  FM_CHECK(!c.blocks.empty() && c.blocks.size() <= 1024,
           "[model] blocks must name 1 to 1024 blocks, got ", c.blocks.size());
  for (const std::string& kind : c.blocks) check_block_kind(kind);
  check_multiple("d_model", c.d_model, 8);
  check_multiple("mlp_hidden", c.mlp_hidden, 8);
  check_range("d_model", c.d_model, 8, kLargest);
  check_range("mlp_hidden", c.mlp_hidden, 8, kLargest);
  check_range("heads", c.heads, 1, c.d_model);
  const bool divides = c.d_model % c.heads == 0;
  if (!divides || c.head_dim() % 8 != 0 || c.head_dim() > 128) {
    int best = 1;  // the head count nearest to the one asked for that works
    for (int heads = 1; heads <= c.d_model; ++heads)
      if (c.d_model % heads == 0 && c.d_model / heads % 8 == 0 && c.d_model / heads <= 128 &&
          (std::abs(heads - c.heads) < std::abs(best - c.heads) || c.d_model / best > 128))
        best = heads;
    fail(Fault::usage,
         "[model] heads must divide d_model into head_dim a multiple of 8, at most 128, got ",
         c.d_model, " / ", c.heads, "; heads ", best, " would work");
  }
  check_range("d_state", c.d_state, 1, 128);
  check_range("d_conv", c.d_conv, 2, 8);
  check_range("expand", c.expand, 1, 4);
  check_range("directions", c.directions, 1, 2);
  check_range("channels", c.channels, 1, 4);
  check_range("classes", c.classes, 0, 255);
  check_range("image", c.image, 1, 4096);
  check_range("patch", c.patch, 1, c.image);
  if (c.image % c.patch != 0) {
    int best = c.patch;
    while (c.image % best != 0) --best;
    fail(Fault::usage, "[model] patch must divide the image, got patch ", c.patch, " for ", c.image,
         " pixels; ", best, " would work");
  }
}

std::vector<std::string> backbone_blocks(const std::string& backbone, int depth) {
  const std::vector<std::string>* pattern = find_backbone(backbone);
  FM_CHECK(pattern, "[model] backbone must be mamba, transformer or hybrid, got ", backbone,
           "; for another list use --blocks mamba,attention,...");
  std::vector<std::string> blocks;
  for (int i = 0; i < depth; ++i)
    blocks.push_back((*pattern)[static_cast<std::size_t>(i) % pattern->size()]);
  return blocks;
}

std::string backbone_name(const std::vector<std::string>& blocks) {
  for (const char* name : {"mamba", "transformer", "hybrid"})
    if (blocks == backbone_blocks(name, static_cast<int>(blocks.size()))) return name;
  return "custom";
}

}  // namespace fm
