#include "models/checkpoint_config.h"

#include <string>

#include "engine/io/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

// A model's tensors as `prefix` + name, and nothing in the metadata but what is given.
std::filesystem::path write_model(const std::filesystem::path& path, const ModelConfig& config,
                                  const std::string& prefix = "", const Metadata& metadata = {}) {
  Context context(CpuQueue(1), DType::f32);
  FlowModel model(config);
  model.materialise(context, ParamStore::Use::inference);
  std::vector<TensorToStore> tensors;
  for (const Parameter& p : model.params().all()) {
    std::vector<std::int64_t> shape;
    for (int i = 0; i < p.shape.rank(); ++i) shape.push_back(p.shape[i]);
    tensors.push_back({prefix + p.name, DType::f32, shape, p.master.data});
  }
  write_safetensors(path, tensors, metadata);
  return path;
}

ModelConfig config_of(const std::filesystem::path& path,
                      const std::optional<Json>& given = std::nullopt) {
  return checkpoint_config(SafetensorsFile(path), given);
}

// Every field differs from its default.
ModelConfig odd_config() {
  ModelConfig config = tiny_config({"mamba", "attention", "attention"});
  config.expand = 3;
  config.directions = 1;
  config.ssm_norm = false;
  config.patch = 3;
  config.channels = 2;
  config.classes = 7;
  return config;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("checkpoint config: the metadata's decides, whatever is given") {
    const TemporaryFolder folder;
    const ModelConfig config = odd_config();
    const auto path =
        write_model(folder / "a", config, "model.", {{"config", to_json(config).dump()}});
    CHECK(config_of(path) == config);
    CHECK(config_of(path, Json{{"heads", 1}}) == config);
  }

  TEST_CASE("checkpoint config: without metadata the shapes decide, what they leave is given") {
    const TemporaryFolder folder;
    const ModelConfig config = odd_config();
    const Json rest = {{"heads", 3}, {"patch", 3}, {"channels", 2}, {"image", 6}};
    for (const char* prefix : {"", "model.", "state_dict.model._orig_mod.", "ema."}) {
      INFO(concat("prefix `", prefix, "`"));
      const auto path = write_model(folder / "a", config, prefix);
      CHECK(config_of(path, rest) == config);
      expect_fault(Fault::data,
                   "[checkpoint] " + path.string() +
                       " has no config and its tensors do not decide heads, patch, channels, "
                       "image; give them with --config FILE.json",
                   [&] { config_of(path); });
      Json less = rest;
      less.erase("channels");
      expect_fault(Fault::data, "do not decide channels; give", [&] { config_of(path, less); });
    }
    // All of it given is all of it, shapes or not.
    const auto path = write_model(folder / "b", config);
    CHECK(config_of(path, to_json(config)) == config);
  }

  TEST_CASE("checkpoint config: blocks of one kind need no dimensions of the other") {
    const TemporaryFolder folder;
    const Json image = {{"patch", 2}, {"channels", 1}, {"image", 6}};
    ModelConfig mamba = tiny_config({"mamba", "mamba"});
    const auto path = write_model(folder / "a", mamba);
    expect_fault(Fault::data, "do not decide patch, channels, image;", [&] { config_of(path); });
    ModelConfig found = config_of(path, image);
    CHECK(found.blocks == mamba.blocks);
    CHECK(found.d_model == mamba.d_model);
    CHECK(found.d_state == mamba.d_state);
    CHECK(found.d_conv == mamba.d_conv);
    CHECK(found.expand == mamba.expand);
    CHECK(found.directions == mamba.directions);
    CHECK(found.ssm_norm);

    ModelConfig attention = tiny_config({"attention"});
    const auto other = write_model(folder / "b", attention);
    expect_fault(Fault::data, "do not decide heads, patch, channels, image;",
                 [&] { config_of(other); });
    Json with_heads = image;
    with_heads["heads"] = 3;
    found = config_of(other, with_heads);
    CHECK(found.blocks == attention.blocks);
    CHECK(found.mlp_hidden == attention.mlp_hidden);
    CHECK(found.classes == 0);
  }

  TEST_CASE("checkpoint config: a file of something else is asked for everything it lacks") {
    const TemporaryFolder folder;
    const float zeros[4] = {};
    write_safetensors(folder / "a", {{"encoder.weight", DType::f32, {2, 2}, zeros}});
    expect_fault(Fault::data, "do not decide blocks, d_model, heads, mlp_hidden, d_state",
                 [&] { config_of(folder / "a"); });
  }

  TEST_CASE("checkpoint config: what is read must be JSON, of known fields, and a model") {
    const TemporaryFolder folder;
    const ModelConfig config = tiny_config({"mamba"});
    const auto with = [&](const std::string& text) {
      return write_model(folder / "a", config, "", {{"config", text}});
    };
    expect_fault(Fault::data, "[checkpoint] the metadata's config is not JSON",
                 [&] { config_of(with("{\"d_model\":")); });
    expect_fault(Fault::data, "d_model must be a whole number in range, got \"x\"",
                 [&] { config_of(with("{\"d_model\":\"x\"}")); });
    expect_fault(Fault::data, "width is no field", [&] { config_of(with("{\"width\":8}")); });
    expect_fault(Fault::data, "d_model must be a positive multiple of 8, got 20; 16 would work (",
                 [&] { config_of(with("{\"d_model\":20}")); });
    const auto bare = write_model(folder / "b", config);
    expect_fault(Fault::data, "width is no field", [&] { config_of(bare, Json{{"width", 8}}); });
  }

  TEST_CASE("checkpoint config: given dimensions that the tensors contradict fail at the weights") {
    const TemporaryFolder folder;
    const auto path = write_model(folder / "a", tiny_config({"mamba"}));
    const ModelConfig wrong =
        config_of(path, Json{{"patch", 3}, {"channels", 1}, {"image", 6}, {"d_state", 4}});
    Context context(CpuQueue(1), DType::f32);
    FlowModel model(wrong);
    model.materialise(context, ParamStore::Use::inference);
    expect_fault(Fault::data, "misshapen: patch_embed.weight [24, 4] instead of [24, 9]",
                 [&] { read_weights(SafetensorsFile(path), model.params(), Weights::raw); });
  }
}

}  // namespace fm::test
