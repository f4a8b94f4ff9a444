#include "models/classifier.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <numbers>

#include "engine/io/checkpoint.h"
#include "engine/io/fields.h"
#include "engine/ops/activation.h"
#include "engine/ops/cross_entropy.h"
#include "engine/optim/optimizer.h"
#include "engine/tape.h"
#include "kernels/flow/flow_sample.h"
#include "kernels/image_batch/image_batch.h"

namespace fm {
namespace {

constexpr const char* kFormat = "classifier-1";
constexpr std::int64_t kChunk = 1000;  // images classified at a time: 8 MB of activations

struct StepParts {
  const Classifier& classifier;
  ParamStore& params;
  Optimizer& optimizer;
  const ClassifierTraining& settings;
  std::int64_t images;
  const DeviceData* data;  // null while planning
};

// Everything a step does, in order.
void train_step(Context& context, const StepParts& parts) {
  const ClassifierConfig& config = parts.classifier.config();
  const int batch = parts.settings.batch;
  context.arena.reset();
  Tape tape(context);
  context.tape = &tape;
  const Tensor x = context.make({batch, config.channels, config.image, config.image});
  const Tensor labels = context.make({batch}, DType::i32);
  tape.constant(x);
  context.run([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    image_batch(queue, ImageBatch<R>{.batch = batch,
                                     .images = parts.images,
                                     .channels = config.channels,
                                     .height = config.image,
                                     .width = config.image,
                                     .data = parts.data->pixels(),
                                     .labels = parts.data->labels(),
                                     .state = parts.optimizer.device_state(),
                                     .seed = parts.settings.seed,
                                     .max_shift = parts.settings.max_shift,
                                     .x = x.as<R>(),
                                     .batch_labels = labels.as<std::int32_t>()});
  });
  const Tensor logits = parts.classifier(context, x).logits;
  const Tensor loss = cross_entropy(context, logits, labels, parts.optimizer.device_state());
  tape.backward();
  parts.optimizer.step(context, parts.params, loss);
  context.tape = nullptr;
}

int classes_of(const DataSet& data) {
  return 1 + *std::max_element(data.labels.begin(), data.labels.end());
}

void check_images(const Classifier& classifier, const DataSet& data) {
  const ClassifierConfig& config = classifier.config();
  FM_CHECK(data.size == config.image && data.channels == config.channels,
           "[classifier] it was made for ", config.channels, " x ", config.image, " x ",
           config.image, " images, ", data.name, " has ", data.channels, " x ", data.size, " x ",
           data.size);
}

void softmax(const float* logits, int classes, float* probabilities) {
  const double largest = *std::max_element(logits, logits + classes);
  double sum = 0;
  for (int j = 0; j < classes; ++j) sum += std::exp(logits[j] - largest);
  for (int j = 0; j < classes; ++j)
    probabilities[j] = static_cast<float>(std::exp(logits[j] - largest) / sum);
}

// to_chunk(first, count) gives the images' memory.
template <class ToChunk>
Classified classify_chunks(const Queue& queue, const Classifier& classifier, std::int64_t count,
                           ToChunk&& to_chunk) {
  const ClassifierConfig& config = classifier.config();
  const auto forward = [&](Context& context, std::int64_t images, const float* pixels) {
    context.arena.reset();
    const Tensor x = context.make({images, config.channels, config.image, config.image});
    if (pixels) std::visit([&](auto& q) { upload(q, x.data, pixels, x.bytes()); }, context.queue);
    return classifier(context, x);
  };
  Context plan(queue, DType::f32);
  forward(plan, std::min(count, kChunk), nullptr);
  Context context(queue, DType::f32, plan.arena.peak());
  Classified result;
  result.count = count;
  result.width = config.features;
  result.classes = config.classes;
  result.features.resize(static_cast<std::size_t>(count * config.features));
  result.probabilities.resize(static_cast<std::size_t>(count * config.classes));
  std::vector<float> logits(static_cast<std::size_t>(kChunk * config.classes));
  for (std::int64_t first = 0; first < count; first += kChunk) {
    const std::int64_t images = std::min(kChunk, count - first);
    const Classifier::Output output = forward(context, images, to_chunk(first, images));
    std::visit(
        [&](auto& q) {
          download(q, result.features.data() + first * config.features, output.features.data,
                   output.features.bytes());
          download(q, logits.data(), output.logits.data, output.logits.bytes());
        },
        context.queue);
    for (std::int64_t i = 0; i < images; ++i)
      softmax(logits.data() + i * config.classes, config.classes,
              result.probabilities.data() + (first + i) * config.classes);
  }
  return result;
}

const std::string& entry(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    fail(Fault::data, "[classifier] ", file.path().string(),
         " is no classifier: its metadata has no ", key);
  return found->second;
}

}  // namespace

Classifier::Classifier(const ClassifierConfig& config) : config_(config) {
  ClassifierConfig::fields(config_, [](const char* name, int value, const char*) {
    FM_CHECK(value > 0 && value <= 1 << 16, "[classifier] ", name, " must be in [1, 65536], got ",
             value);
  });
  const int pixels = config.channels * config.image * config.image;
  const int widths[] = {pixels, config.hidden1, config.hidden2, config.features, config.classes};
  for (int i = 0; i + 1 < static_cast<int>(std::size(widths)); ++i)
    layers_.emplace_back(params_, concat("fc", i + 1), widths[i], widths[i + 1]);
}

Classifier::Output Classifier::operator()(Context& context, const Tensor& x) const {
  FM_CHECK(context.compute == context.acc(), "[classifier] it computes in fp32 or fp64, got ",
           name_of(context.compute));
  Tensor hidden = x.view({x.shape[0], x.count() / x.shape[0]});
  for (std::size_t i = 0; i + 1 < layers_.size(); ++i)
    hidden = silu(context, layers_[i](context, hidden));
  return {hidden, layers_.back()(context, hidden)};
}

std::unique_ptr<Classifier> train_classifier(const Queue& queue, const DataSet& train,
                                             const ClassifierTraining& settings) {
  FM_CHECK(settings.batch > 0 && train.count >= settings.batch && settings.epochs > 0,
           "[classifier] the data set must hold a batch, and epochs be positive, got ", train.count,
           " images, batch ", settings.batch, ", ", settings.epochs, " epochs");
  const ClassifierConfig config{
      .channels = train.channels, .image = train.size, .classes = classes_of(train)};
  Classifier learner(config);
  Context plan(queue, DType::f32);
  learner.params().materialise(plan, ParamStore::Use::training);
  learner.params().initialise(settings.seed);
  OptimizerSettings optimizer_settings{.steps_per_epoch = train.count / settings.batch};
  // The rate is a setting of the optimizer; each epoch gets one, which takes over the state of the
  // last. Adam's moments are the parameter store's.
  auto optimizer = std::make_unique<Optimizer>(plan, optimizer_settings);
  const auto step = [&](Context& context, const DeviceData* data) {
    train_step(context, {learner, learner.params(), *optimizer, settings, train.count, data});
  };
  step(plan, nullptr);
  Context context(queue, DType::f32, plan.arena.peak());
  const DeviceData data(queue, train);
  const auto steps = static_cast<std::uint64_t>(optimizer_settings.steps_per_epoch);
  for (int epoch = 0; epoch < settings.epochs; ++epoch) {
    const StepState state = optimizer->read_state();
    const double way = static_cast<double>(epoch) / settings.epochs;
    optimizer_settings.lr =
        static_cast<float>(settings.lr * (1 + std::cos(std::numbers::pi * way)) / 2);
    optimizer = std::make_unique<Optimizer>(context, optimizer_settings);
    optimizer->write_state(state);
    for (std::uint64_t i = 0; i < steps; ++i) step(context, &data);
    if (settings.on_epoch)
      settings.on_epoch(epoch + 1,
                        optimizer->read_state().epoch_loss_sum / static_cast<double>(steps));
  }
  auto trained = std::make_unique<Classifier>(config);
  trained->params().materialise(context, ParamStore::Use::inference);
  trained->params().write(trained->params().master(),
                          learner.params().read(learner.params().master()));
  return trained;
}

Classified classify(const Queue& queue, const Classifier& classifier, const float* images,
                    std::int64_t count) {
  const ClassifierConfig& config = classifier.config();
  const std::int64_t pixels = std::int64_t{config.channels} * config.image * config.image;
  return classify_chunks(queue, classifier, count,
                         [&](std::int64_t first, std::int64_t) { return images + first * pixels; });
}

Classified classify(const Queue& queue, const Classifier& classifier, const DataSet& data,
                    std::int64_t count) {
  check_images(classifier, data);
  std::vector<float> chunk;
  return classify_chunks(queue, classifier, count, [&](std::int64_t first, std::int64_t images) {
    chunk = scaled_images(data, first, images);
    return chunk.data();
  });
}

std::vector<float> scaled_images(const DataSet& data, std::int64_t first, std::int64_t count) {
  FM_CHECK(first >= 0 && count >= 0 && first + count <= data.count, "[data] ", data.name, " holds ",
           data.count, " images, asked for ", count, " from ", first);
  const std::uint8_t* from = data.pixels.data() + first * data.pixels_per_image();
  std::vector<float> images(static_cast<std::size_t>(count * data.pixels_per_image()));
  for (std::size_t i = 0; i < images.size(); ++i) images[i] = flow_pixel(from[i], 0.0f);
  return images;
}

double accuracy(const Queue& queue, const Classifier& classifier, const DataSet& test) {
  const Classified said = classify(queue, classifier, test, test.count);
  std::int64_t right = 0;
  for (std::int64_t i = 0; i < said.count; ++i) {
    const float* row = said.probabilities.data() + i * said.classes;
    right +=
        std::max_element(row, row + said.classes) - row == test.labels[static_cast<std::size_t>(i)];
  }
  return static_cast<double>(right) / static_cast<double>(said.count);
}

Metadata classifier_metadata(const Classifier& classifier, const ClassifierRecord& record) {
  return {{"format", kFormat},
          {"config", to_json(classifier.config()).dump()},
          {"data", record.data},
          {"data_fingerprint", record.fingerprint},
          {"test_accuracy", concat(record.accuracy)}};
}

LoadedClassifier read_classifier(const Queue& queue, const SafetensorsFile& file) {
  const std::string where = file.path().string();
  if (entry(file, "format") != kFormat)
    fail(Fault::data, "[classifier] format must be ", kFormat, ", got ", entry(file, "format"),
         " (", where, ")");
  const Json json = Json::parse(entry(file, "config"), nullptr, false);
  if (json.is_discarded()) fail(Fault::data, "[classifier] config is not JSON (", where, ")");
  ClassifierConfig config;
  from_json(config, json, where);
  LoadedClassifier loaded;
  loaded.record = {entry(file, "data"), entry(file, "data_fingerprint"), 0};
  const std::string text = entry(file, "test_accuracy");
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), loaded.record.accuracy);
  if (error != std::errc() || end != text.data() + text.size())
    fail(Fault::data, "[classifier] test_accuracy must be a number, got ", text, " (", where, ")");
  try {
    loaded.classifier = std::make_unique<Classifier>(config);
  } catch (const Error& bad) {
    fail(Fault::data, bad.what(), " (", where, ")");
  }
  Context context(queue, DType::f32);
  loaded.classifier->params().materialise(context, ParamStore::Use::inference);
  read_weights(file, loaded.classifier->params(), Weights::raw);
  return loaded;
}

}  // namespace fm
