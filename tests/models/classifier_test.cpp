#include "models/classifier.h"

#include <cmath>

#include "engine/io/checkpoint.h"
#include "engine/ops/cross_entropy.h"
#include "engine/tape.h"
#include "tests/support/cuda.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace fm::test {
namespace {

const DataSet& train_digits() {
  static const DataSet data = few_digits(10000);
  return data;
}
const DataSet& test_digits() {
  static const DataSet data = [] {
    DataSet test = few_digits(2000);
    draw_digits(kDigitsSeed, kDigitsTrain, test.count, test.pixels.data(), test.labels.data());
    return test;
  }();
  return data;
}

// Two images of three channels, and classes enough to be wrong about.
struct Small {
  ClassifierConfig config{
      .channels = 3, .image = 5, .hidden1 = 7, .hidden2 = 6, .features = 4, .classes = 3};
  Queue queue = cpu_queue();
  Classifier classifier{config};
  Context context{queue, DType::f64, 1 << 20};
  Values images = normals(2 * 75, 1), labels = {2, 0};

  Small() {
    classifier.params().materialise(context, ParamStore::Use::training);
    classifier.params().initialise(3);
  }
  // With a tape, the parameters' gradients are left in the store.
  double loss(Tape* tape) {
    context.arena.reset();
    context.tape = tape;
    const Tensor x = tensor_of(context, {2, 3, 5, 5}, DType::f64, images);
    const Tensor y = tensor_of(context, {2}, DType::i32, labels);
    const Tensor mean = cross_entropy(context, classifier(context, x).logits, y, nullptr);
    const double value = read(queue, mean)[0];
    if (tape) {
      tape->constant(x);
      tape->backward();
    }
    context.tape = nullptr;
    return value;
  }
};

ClassifierTraining short_training(std::uint64_t seed = 0) {
  ClassifierTraining settings;
  settings.epochs = 2;
  settings.seed = seed;
  return settings;
}

std::vector<std::byte> weights_of(Classifier& classifier) {
  return classifier.params().read(classifier.params().master());
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("classifier: the gradient of every parameter") {
    Small small;
    Tape tape(small.context);
    small.loss(&tape);
    for (const Parameter& p : small.classifier.params().all()) {
      const Values at = read(small.queue, p.master);
      check_gradient(p.name, at, read(small.queue, p.gradient), [&](const Values& moved) {
        write(small.queue, p.master, moved);
        const double loss = small.loss(nullptr);
        write(small.queue, p.master, at);
        return loss;
      });
    }
  }

  TEST_CASE("classifier: it learns the digits, and reads them from a file as well") {
    const Queue queue = cpu_queue();
    ClassifierTraining settings = short_training();
    std::vector<double> losses;
    settings.on_epoch = [&](int epoch, double loss) {
      losses.push_back(loss);
      CHECK(epoch == static_cast<int>(losses.size()));
    };
    const auto classifier = train_classifier(queue, train_digits(), settings);
    REQUIRE(losses.size() == 2);
    CHECK(losses[0] < std::log(10.0));
    CHECK(losses[1] < 0.5 * losses[0]);
    const double right = accuracy(queue, *classifier, test_digits());
    CHECK(right > 0.93);  // 97 % on these seeds; one digit more or less is 0.05 %

    const TemporaryFolder folder;
    write_checkpoint(folder / "classifier", classifier->params(),
                     classifier_metadata(*classifier, {"digits", "abc", right}));
    const SafetensorsFile file(folder / "classifier");
    const LoadedClassifier loaded = read_classifier(queue, file);
    CHECK(loaded.record.data == "digits");
    CHECK(loaded.record.fingerprint == "abc");
    CHECK(loaded.record.accuracy == doctest::Approx(right).epsilon(1e-5));
    CHECK(loaded.classifier->config() == classifier->config());
    CHECK(file.tensors().size() == 8);  // no moments
    CHECK(weights_of(*loaded.classifier) == weights_of(*classifier));
    CHECK(accuracy(queue, *loaded.classifier, test_digits()) == right);

    Metadata metadata = file.metadata();
    for (const char* key : {"format", "config", "data", "data_fingerprint", "test_accuracy"}) {
      Metadata without = metadata;
      without.erase(key);
      write_checkpoint(folder / "bad", classifier->params(), without);
      expect_fault(Fault::data, key,
                   [&] { read_classifier(queue, SafetensorsFile(folder / "bad")); });
      without[key] = "{";
      if (std::string(key).starts_with("data")) continue;  // any text is a name
      write_checkpoint(folder / "bad", classifier->params(), without);
      expect_fault(Fault::data, key,
                   [&] { read_classifier(queue, SafetensorsFile(folder / "bad")); });
    }
    metadata["config"] = R"({"features": 65})";
    write_checkpoint(folder / "bad", classifier->params(), metadata);
    expect_fault(Fault::data, "fc4.weight",
                 [&] { read_classifier(queue, SafetensorsFile(folder / "bad")); });
    metadata["config"] = R"({"features": 0})";
    write_checkpoint(folder / "bad", classifier->params(), metadata);
    expect_fault(Fault::data, "features must be",
                 [&] { read_classifier(queue, SafetensorsFile(folder / "bad")); });
  }

  TEST_CASE("classifier: the same seed gives the same bits, on any number of threads") {
    const DataSet data = few_digits(1000);
    const auto weights = [&](int threads, std::uint64_t seed) {
      return weights_of(*train_classifier(CpuQueue(threads), data, short_training(seed)));
    };
    const std::vector<std::byte> base = weights(1, 4);
    CHECK(weights(3, 4) == base);
    CHECK(weights(1, 5) != base);
  }

  TEST_CASE("classifier: what it says of many images is what it says of each") {
    const Queue queue = cpu_queue();
    const auto classifier = train_classifier(queue, few_digits(1000), short_training());
    const std::int64_t count = 1003;  // a chunk and a bit
    const Classified all = classify(queue, *classifier, test_digits(), count);
    CHECK(all.features.size() == static_cast<std::size_t>(count * all.width));
    const std::vector<float> images = scaled_images(test_digits(), 0, count);
    const Classified same = classify(queue, *classifier, images.data(), count);
    CHECK(same.features == all.features);
    CHECK(same.probabilities == all.probabilities);
    for (std::int64_t i : {0, 999, 1000, 1002}) {
      const Classified one = classify(queue, *classifier, images.data() + i * 784, 1);
      double sum = 0;
      for (int j = 0; j < 10; ++j) {
        const float p = one.probabilities[j];
        sum += p;
        CHECK(p == doctest::Approx(all.probabilities[i * 10 + j]).epsilon(1e-4));
      }
      CHECK(sum == doctest::Approx(1).epsilon(1e-6));
    }
  }

  TEST_CASE("classifier: what does not fit is refused") {
    const Queue queue = cpu_queue();
    DataSet data = few_digits(100);
    expect_fault(Fault::usage, "must hold a batch",
                 [&] { train_classifier(queue, data, short_training()); });
    expect_fault(Fault::usage, "hidden1 must be", [] { Classifier c({.hidden1 = 0}); });
    expect_fault(Fault::usage, "holds 100 images", [&] { scaled_images(data, 90, 11); });
    Classifier classifier({.image = 14});
    Context context(queue, DType::f32);
    classifier.params().materialise(context, ParamStore::Use::inference);
    expect_fault(Fault::usage, "it was made for 1 x 14 x 14",
                 [&] { classify(queue, classifier, data, 1); });
  }

  TEST_CASE("classifier: pixels are scaled as batches scale them") {
    DataSet data = few_digits(2);
    data.pixels[784] = 0;
    data.pixels[785] = 255;
    const std::vector<float> images = scaled_images(data, 1, 1);
    CHECK(images.size() == 784);
    CHECK(images[0] == -1);
    CHECK(images[1] == 1);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("classifier: trained on CUDA, read on the CPU") {
    const Queue cuda = cuda_queue(), cpu = cpu_queue();
    const DataSet few = few_digits(small_effort() ? 256 : 10000);
    const auto classifier = train_classifier(cuda, few, short_training());
    const auto again = train_classifier(cuda, few, short_training());
    CHECK(weights_of(*again) == weights_of(*classifier));
    const double right = accuracy(cuda, *classifier, test_digits());
    if (!small_effort()) CHECK(right > 0.93);

    const TemporaryFolder folder;
    write_checkpoint(folder / "classifier", classifier->params(),
                     classifier_metadata(*classifier, {"digits", "abc", right}));
    const LoadedClassifier loaded = read_classifier(cpu, SafetensorsFile(folder / "classifier"));
    const Classified there = classify(cuda, *classifier, test_digits(), 1003);
    const Classified here = classify(cpu, *loaded.classifier, test_digits(), 1003);
    const Values got(there.features.begin(), there.features.end());
    const Values want(here.features.begin(), here.features.end());
    expect_close("features", got, want, 1e-5);
  }
}
#endif

}  // namespace fm::test
