// What a model is: every dimension, and the presets.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fm {

struct ModelConfig {
  std::vector<std::string> blocks = std::vector<std::string>(8, "mamba");
  int d_model = 128;
  int heads = 8;
  int mlp_hidden = 512;
  int d_state = 64;
  int d_conv = 4;
  int expand = 2;
  int directions = 2;
  bool ssm_norm = true;
  int patch = 2;
  int channels = 1;
  int image = 28;
  int classes = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("blocks", self.blocks, "block kinds, first to last: mamba or attention");
    visit("d_model", self.d_model, "width of the residual stream, a multiple of 8");
    visit("heads", self.heads, "attention heads; d_model / heads is a multiple of 8, at most 128");
    visit("mlp_hidden", self.mlp_hidden, "hidden width of the SwiGLU, a multiple of 8");
    visit("d_state", self.d_state, "states a scanned channel, 1 to 128");
    visit("d_conv", self.d_conv, "width of the mixer's convolution, 2 to 8");
    visit("expand", self.expand, "scanned channels a direction over d_model, 1 to 4");
    visit("directions", self.directions, "scan directions, 1 or 2");
    visit("ssm_norm", self.ssm_norm, "the Mamba mixer's four RMSNorms");
    visit("patch", self.patch, "patch side in pixels; divides the image");
    visit("channels", self.channels, "image channels, 1 to 4");
    visit("image", self.image, "image side in pixels");
    visit("classes", self.classes, "classes to condition on; 0: unconditional");
  }

  bool operator==(const ModelConfig&) const = default;

  int tokens() const { return (image / patch) * (image / patch); }
  int token_width() const { return channels * patch * patch; }
  int head_dim() const { return d_model / heads; }
  int scanned_channels() const { return directions * expand * d_model; }
  int dt_rank() const { return (d_model + 15) / 16; }
};

// Throws Fault::usage with a sentence that names the field and what would work.
void validate(const ModelConfig&);

// The block list of a backbone: "mamba" (8 mamba), "transformer" (8 attention), "hybrid" (mamba,
// attention, 4 times), `depth` blocks of that pattern. Throws Fault::usage for another name.
std::vector<std::string> backbone_blocks(const std::string& backbone, int depth = 8);
// The name of a block list that is one of these at some depth, otherwise "custom".
std::string backbone_name(const std::vector<std::string>& blocks);

}  // namespace fm
