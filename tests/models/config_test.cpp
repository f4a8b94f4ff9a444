#include "models/config.h"

#include <functional>
#include <string>

#include "engine/io/fields.h"
#include "models/backbone.h"
#include "models/flow_model.h"
#include "tests/support/files.h"

namespace fm::test {
namespace {

// The default configuration with one change must be refused with this phrase.
void expect_refused(const std::string& phrase, const std::function<void(ModelConfig&)>& change) {
  ModelConfig config;
  change(config);
  expect_fault(Fault::usage, phrase, [&] { validate(config); });
  expect_fault(Fault::usage, phrase, [&] { FlowModel model(config); });
}

// The number that a refusal offers after `before`, or -1 where it offers none.
int offered(const ModelConfig& config, const std::string& before) {
  try {
    validate(config);
  } catch (const Error& error) {
    const std::string message = error.what();
    const std::size_t at = message.rfind(before);
    REQUIRE(at != std::string::npos);
    REQUIRE(message.ends_with(" would work"));
    return std::stoi(message.substr(at + before.size()));
  }
  return -1;
}

std::int64_t parameters_of(const std::string& backbone) {
  ModelConfig config;
  config.blocks = backbone_blocks(backbone);
  return FlowModel(config).params().count();
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("config: the study's backbones have the parameters they should") {
    CHECK(parameters_of("mamba") == 3'087'492);
    CHECK(parameters_of("transformer") == 3'134'468);
    CHECK(parameters_of("hybrid") == 3'110'980);
  }

  TEST_CASE("config: the defaults are the study's, and what follows from them") {
    const ModelConfig config;
    validate(config);
    CHECK(config.blocks == backbone_blocks("mamba"));
    CHECK(config.tokens() == 196);
    CHECK(config.token_width() == 4);
    CHECK(config.head_dim() == 16);
    CHECK(config.scanned_channels() == 512);
    CHECK(config.dt_rank() == 8);
  }

  TEST_CASE("config: named backbones at any depth, and the name of a list") {
    using Blocks = std::vector<std::string>;
    CHECK(backbone_blocks("mamba", 2) == Blocks{"mamba", "mamba"});
    CHECK(backbone_blocks("transformer", 1) == Blocks{"attention"});
    CHECK(backbone_blocks("hybrid", 3) == Blocks{"mamba", "attention", "mamba"});
    CHECK(backbone_blocks("hybrid").size() == 8);
    for (const char* name : {"mamba", "transformer", "hybrid"})
      for (const int depth : {2, 3, 8}) CHECK(backbone_name(backbone_blocks(name, depth)) == name);
    CHECK(backbone_name({"mamba"}) == "mamba");
    CHECK(backbone_name({"attention", "mamba"}) == "custom");
    CHECK(backbone_name({"mamba", "mamba", "attention"}) == "custom");
    expect_fault(Fault::usage,
                 "[model] backbone must be mamba, transformer or hybrid, got gru; for another "
                 "list use --blocks mamba,attention,...",
                 [] { backbone_blocks("gru"); });
  }

  TEST_CASE("config: a refusal names the field and what would work") {
    using C = ModelConfig&;
    expect_refused("[model] blocks must name 1 to 1024 blocks, got 0", [](C c) { c.blocks = {}; });
    expect_refused("[model] blocks must name 1 to 1024 blocks, got 1025",
                   [](C c) { c.blocks.assign(1025, "mamba"); });
    expect_refused("[model] a block must be mamba or attention, got conv", [](C c) {
      c.blocks = {"mamba", "conv"};
    });
    expect_refused("[model] a block must be mamba or attention, got nothing",
                   [](C c) { c.blocks = {""}; });
    expect_refused("[model] d_model must be a positive multiple of 8, got 20; 16 would work",
                   [](C c) { c.d_model = 20; });
    expect_refused("[model] d_model must be a positive multiple of 8, got 0; 8 would work",
                   [](C c) { c.d_model = 0; });
    expect_refused("d_model must be a positive multiple of 8, got -8; 8 would work",
                   [](C c) { c.d_model = -8; });
    expect_refused("[model] d_model must be 8 to 65536, got 65544", [](C c) { c.d_model = 65544; });
    expect_refused("[model] mlp_hidden must be a positive multiple of 8, got 500; 496 would work",
                   [](C c) { c.mlp_hidden = 500; });
    expect_refused("[model] mlp_hidden must be 8 to 65536, got 65544",
                   [](C c) { c.mlp_hidden = 65544; });
    expect_refused("[model] heads must be 1 to 128, got 0", [](C c) { c.heads = 0; });
    expect_refused(
        "[model] heads must divide d_model into head_dim a multiple of 8, at most 128, "
        "got 128 / 3; heads 2 would work",
        [](C c) { c.heads = 3; });
    expect_refused("got 128 / 32; heads 16 would work", [](C c) { c.heads = 32; });
    expect_refused("got 512 / 1; heads 4 would work", [](C c) { c.d_model = 512, c.heads = 1; });
    expect_refused("[model] d_state must be 1 to 128, got 0", [](C c) { c.d_state = 0; });
    expect_refused("[model] d_state must be 1 to 128, got 129", [](C c) { c.d_state = 129; });
    expect_refused("[model] d_conv must be 2 to 8, got 1", [](C c) { c.d_conv = 1; });
    expect_refused("[model] d_conv must be 2 to 8, got 9", [](C c) { c.d_conv = 9; });
    expect_refused("[model] expand must be 1 to 4, got 0", [](C c) { c.expand = 0; });
    expect_refused("[model] expand must be 1 to 4, got 5", [](C c) { c.expand = 5; });
    expect_refused("[model] directions must be 1 to 2, got 3", [](C c) { c.directions = 3; });
    expect_refused("[model] directions must be 1 to 2, got 0", [](C c) { c.directions = 0; });
    expect_refused("[model] channels must be 1 to 4, got 5", [](C c) { c.channels = 5; });
    expect_refused("[model] channels must be 1 to 4, got 0", [](C c) { c.channels = 0; });
    expect_refused("[model] classes must be 0 to 255, got -1", [](C c) { c.classes = -1; });
    expect_refused("[model] classes must be 0 to 255, got 256", [](C c) { c.classes = 256; });
    expect_refused("[model] image must be 1 to 4096, got 0", [](C c) { c.image = 0; });
    expect_refused("[model] image must be 1 to 4096, got 4097", [](C c) { c.image = 4097; });
    expect_refused("[model] patch must be 1 to 28, got 0", [](C c) { c.patch = 0; });
    expect_refused("[model] patch must be 1 to 28, got 29", [](C c) { c.patch = 29; });
    expect_refused("[model] patch must divide the image, got patch 3 for 28 pixels; 2 would work",
                   [](C c) { c.patch = 3; });
  }

  TEST_CASE("config: the limits themselves are accepted") {
    ModelConfig low;
    low.blocks = {"attention"};
    low.d_model = low.mlp_hidden = 8;
    low.heads = low.d_state = low.expand = low.directions = low.image = low.patch = 1;
    low.d_conv = 2;
    validate(low);
    ModelConfig high;
    high.blocks.assign(1024, "mamba");
    high.d_model = high.mlp_hidden = 65536;
    high.heads = 512;
    high.d_state = 128;
    high.d_conv = 8;
    high.expand = high.channels = 4;
    high.classes = 255;
    high.image = high.patch = 4096;
    validate(high);
  }

  TEST_CASE("config: what a refusal offers does work, for every width, head count and patch") {
    for (int d = 8; d <= 1100; d += d < 300 ? 8 : 200) {
      for (int heads = 1; heads <= std::min(d, 160); ++heads) {
        ModelConfig config;
        config.d_model = d;
        config.heads = heads;
        const int better = offered(config, "; heads ");
        if (better < 0) continue;
        config.heads = better;
        INFO("d_model ", d, ", heads ", heads, ", offered ", better);
        CHECK(offered(config, "; heads ") == -1);
      }
    }
    for (int image = 1; image <= 64; ++image) {
      for (int patch = 1; patch <= image; ++patch) {
        ModelConfig config;
        config.image = image;
        config.patch = patch;
        const int better = offered(config, "; ");
        CHECK((better < 0) == (image % patch == 0));
        if (better > 0) CHECK(image % better == 0);
      }
    }
  }

  TEST_CASE("config: JSON carries every field") {
    ModelConfig config;
    config.blocks = {"attention", "mamba"};
    config.d_model = 16;
    config.heads = 2;
    config.mlp_hidden = 24;
    config.d_state = 3;
    config.d_conv = 5;
    config.expand = 1;
    config.directions = 1;
    config.ssm_norm = false;
    config.patch = 7;
    config.channels = 3;
    config.image = 14;
    config.classes = 9;
    ModelConfig read;
    CHECK(from_json(read, to_json(config), "a test").size() == 13);
    CHECK(read == config);
  }
}

}  // namespace fm::test
