#include "models/checkpoint_config.h"

#include <algorithm>

#include "engine/io/checkpoint.h"

namespace fm {
namespace {

// The shapes of a checkpoint's tensors by the model's own names.
class Shapes {
 public:
  explicit Shapes(const SafetensorsFile& file) : file_(file) {
    // Names that every model has, whatever its blocks.
    find_prefix(file,
                {"patch_embed.weight", "time_fc1.weight", "time_fc2.weight", "head.weight",
                 "head_adaln.weight"},
                Weights::raw, prefix_);
  }
  // The extent, or 0 where the tensor or the dimension is not there.
  int extent(const std::string& name, std::size_t dimension) const {
    const StoredTensor* stored = file_.find(prefix_ + name);
    return stored && dimension < stored->shape.size() ? static_cast<int>(stored->shape[dimension])
                                                      : 0;
  }
  bool has(const std::string& name) const { return file_.find(prefix_ + name) != nullptr; }

 private:
  const SafetensorsFile& file_;
  std::string prefix_;
};

// What the shapes decide goes into `decided`, field by field, as JSON.
Json decided_by(const Shapes& shapes) {
  Json json = Json::object();
  const auto set = [&](const char* field, int value) {
    if (value > 0) json[field] = value;
  };
  const int d = shapes.extent("patch_embed.weight", 0);
  set("d_model", d);
  set("classes", 0);
  json["classes"] = std::max(0, shapes.extent("label_embed.weight", 0) - 1);
  std::vector<std::string> blocks;
  for (int i = 0;; ++i) {
    const std::string mixer = concat("blocks.", i, ".mixer.");
    if (shapes.has(mixer + "qkv.weight")) {
      blocks.push_back("attention");
      set("mlp_hidden", shapes.extent(concat("blocks.", i, ".mlp.w3.weight"), 1));
    } else if (shapes.has(mixer + "in_proj.weight")) {
      blocks.push_back("mamba");
      set("d_state", shapes.extent(mixer + "A_log", 1));
      set("d_conv", shapes.extent(mixer + "conv_weight", 1));
      set("directions", shapes.extent(mixer + "x_proj", 0));
      if (d > 0) set("expand", shapes.extent(mixer + "x_proj", 2) / d);
      json["ssm_norm"] = shapes.has(mixer + "out_norm");
    } else {
      break;
    }
  }
  if (!blocks.empty()) json["blocks"] = blocks;
  return json;
}

}  // namespace

ModelConfig checkpoint_config(const SafetensorsFile& file, const std::optional<Json>& given) {
  const std::string path = file.path().string();
  ModelConfig config;
  const auto stored = file.metadata().find("config");
  if (stored != file.metadata().end()) {
    const Json json = Json::parse(stored->second, nullptr, false);
    if (json.is_discarded())
      fail(Fault::data, "[checkpoint] the metadata's config is not JSON (", path, ")");
    from_json(config, json, path);
  } else {
    const Json decided = decided_by(Shapes(file));
    auto known = from_json(config, decided, path);
    if (given) known.merge(from_json(config, *given, "--config"));
    // Dimensions of a kind of block that the model has none of decide nothing.
    const auto uses = [&](const char* kind) {
      return std::find(config.blocks.begin(), config.blocks.end(), kind) != config.blocks.end();
    };
    if (known.count("blocks") && !uses("attention")) {
      if (known.insert("heads").second)
        config.heads = std::max(1, config.d_model / 8);  // any valid number
      known.insert("mlp_hidden");
    }
    if (known.count("blocks") && !uses("mamba"))
      known.insert({"d_state", "d_conv", "expand", "directions", "ssm_norm"});
    std::string missing;
    ModelConfig::fields(config, [&](const char* name, const auto&, const char*) {
      if (!known.count(name)) missing += (missing.empty() ? "" : ", ") + std::string(name);
    });
    if (!missing.empty())
      fail(Fault::data, "[checkpoint] ", path, " has no config and its tensors do not decide ",
           missing, "; give them with --config FILE.json");
  }
  try {
    validate(config);
  } catch (const Error& error) {
    fail(Fault::data, error.what(), " (", path, ")");
  }
  return config;
}

}  // namespace fm
