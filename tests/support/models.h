// Small models and data sets for tests.
#pragma once

#include <string>
#include <vector>

#include "models/dataset.h"
#include "models/digits.h"
#include "models/flow_model.h"
#include "tests/support/tensors.h"

namespace fm::test {

// Nine tokens of 6 x 6 pixels; no two extents are the same where they need not be.
inline ModelConfig tiny_config(const std::vector<std::string>& blocks) {
  ModelConfig config;
  config.blocks = blocks;
  config.d_model = 24;
  config.heads = 3;
  config.mlp_hidden = 40;
  config.d_state = 5;
  config.d_conv = 3;
  config.image = 6;
  return config;
}

// 49 tokens of the digits: what trains in milliseconds a step.
inline ModelConfig small_config(const std::vector<std::string>& blocks) {
  ModelConfig config;
  config.blocks = blocks;
  config.d_model = 32;
  config.heads = 4;
  config.mlp_hidden = 64;
  config.d_state = 8;
  config.patch = 4;
  return config;
}

// The first digits of the train split.
inline DataSet few_digits(std::int64_t count) {
  DataSet data;
  data.name = "digits";
  data.count = count;
  data.pixels.resize(static_cast<std::size_t>(count * data.pixels_per_image()));
  data.labels.resize(static_cast<std::size_t>(count));
  draw_digits(kDigitsSeed, 0, count, data.pixels.data(), data.labels.data());
  return data;
}

}  // namespace fm::test
