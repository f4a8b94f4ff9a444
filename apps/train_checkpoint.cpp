#include "apps/train_checkpoint.h"

#include <charconv>
#include <cstdio>

#include "models/checkpoint_config.h"

namespace fm {
namespace {

constexpr const char* kFormat = "1";

// Every number as text that reads back to the same bits.
std::string exact(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

const std::string& entry(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    fail(Fault::data, "[checkpoint] ", file.path().string(),
         " cannot be resumed from: its metadata has no ", key);
  return found->second;
}

template <class N>
N number(const SafetensorsFile& file, const std::string& key) {
  const std::string& text = entry(file, key);
  N value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail(Fault::data, "[checkpoint] ", key, " must be a number, got ", text, " (",
         file.path().string(), ")");
  return value;
}

Json json_entry(const SafetensorsFile& file, const std::string& key) {
  const Json json = Json::parse(entry(file, key), nullptr, false);
  if (json.is_discarded())
    fail(Fault::data, "[checkpoint] ", key, " is not JSON (", file.path().string(), ")");
  return json;
}

void check_same(const std::string& what, const std::string& now, const std::string& then) {
  FM_CHECK(now == then, "[resume] ", what, " must be the checkpoint's, got ", now,
           ", the checkpoint has ", then, "; start a new run with another --out");
}

}  // namespace

void write_training_checkpoint(const std::filesystem::path& path, Trainer& trainer,
                               const RunConfig& config) {
  const StepState state = trainer.optimizer().read_state();
  const auto per_epoch = static_cast<std::uint64_t>(trainer.steps_per_epoch());
  Metadata metadata = {
      {"format", kFormat},
      {"config", to_json(config.model).dump()},
      {"train", to_json(config.train).dump()},
      {"data", to_json(config.data).dump()},
      {"data_scale", "pixel / 127.5 - 1"},
      {"time_convention", "t = 0 is noise, t = 1 is data"},
      {"dtype", name_of(trainer.settings().compute)},
      {"seed", concat(config.train.seed)},
      {"step", concat(state.step)},
      {"epoch", concat(state.step / per_epoch)},
      {"data_cursor", concat(state.step % per_epoch)},
      {"adam_steps", concat(state.adam_steps)},
      {"loss_scale", exact(state.loss_scale)},
      {"good_steps", concat(state.good_steps)},
      {"skipped_in_row", concat(state.skipped_in_row)},
      {"epoch_loss_sum", exact(state.epoch_loss_sum)},
  };
  write_checkpoint(path, trainer.model().params(), metadata);
}

RunConfig training_config(const SafetensorsFile& file) {
  RunConfig config;
  config.model = checkpoint_config(file, std::nullopt);
  from_json(config.train, json_entry(file, "train"), file.path().string());
  from_json(config.data, json_entry(file, "data"), file.path().string());
  return config;
}

void resume_from(const SafetensorsFile& file, Trainer& trainer, const DataSet& data) {
  const RunConfig then = training_config(file);
  check_same("the model", to_json(trainer.model().config()).dump(), to_json(then.model).dump());
  check_same("the data set", data.fingerprint, then.data.fingerprint);  // wherever it lies by now
  check_same("the seed", concat(trainer.settings().seed), entry(file, "seed"));
  check_same("the batch", concat(trainer.settings().batch), concat(then.train.batch));
  check_same("the dtype", name_of(trainer.settings().compute), entry(file, "dtype"));
  const auto average = [](double decay) { return decay > 0 ? "one" : "none"; };
  check_same("the average of the weights (--ema-decay)",
             average(trainer.settings().optimizer.ema_decay), average(then.train.ema_decay));
  read_training_state(file, trainer.model().params());
  StepState state;
  state.step = number<std::uint64_t>(file, "step");
  state.adam_steps = number<std::uint64_t>(file, "adam_steps");
  state.loss_scale = number<float>(file, "loss_scale");
  state.good_steps = number<std::int32_t>(file, "good_steps");
  state.skipped_in_row = number<std::int32_t>(file, "skipped_in_row");
  state.epoch_loss_sum = number<double>(file, "epoch_loss_sum");
  trainer.resume_at(state);
}

}  // namespace fm
