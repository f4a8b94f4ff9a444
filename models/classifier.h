// The classifier that the judge of samples looks through: a small perceptron (linear and SiLU),
// trained with this engine on the train split of the data set a study uses.
//
// Always in fp32 (the gradient test computes in fp64), so that its figures are nearly the same on a
// CPU and on any GPU. 0.55 M parameters; twelve epochs of MNIST take about 20 s on two CPU cores
// and name 98.9 % of the test split. The layer before the logits is what Frechet distances are
// taken of.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/safetensors.h"
#include "models/dataset.h"
#include "models/layers/linear_layer.h"

namespace fm {

struct ClassifierConfig {
  int channels = 1;
  int image = 28;
  int hidden1 = 512;
  int hidden2 = 256;
  int features = 64;
  int classes = 10;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("channels", self.channels, "image channels");
    visit("image", self.image, "image side in pixels");
    visit("hidden1", self.hidden1, "width of the first hidden layer");
    visit("hidden2", self.hidden2, "width of the second hidden layer");
    visit("features", self.features, "width of the layer before the logits");
    visit("classes", self.classes, "classes to tell apart");
  }

  bool operator==(const ClassifierConfig&) const = default;
};

class Classifier {
 public:
  // Declares the parameters. Throws Fault::usage for a dimension that is not positive.
  explicit Classifier(const ClassifierConfig& config);
  Classifier(const Classifier&) = delete;  // layers point into the parameter store
  Classifier& operator=(const Classifier&) = delete;

  struct Output {
    Tensor features;  // [N, features], after the SiLU
    Tensor logits;    // [N, classes]
  };
  // x [N, C, H, W], pixels in [-1, 1], in the context's type, which is its acc type.
  Output operator()(Context& context, const Tensor& x) const;

  const ClassifierConfig& config() const { return config_; }
  ParamStore& params() { return params_; }
  const ParamStore& params() const { return params_; }

 private:
  ClassifierConfig config_;
  ParamStore params_;
  std::deque<LinearLayer> layers_;  // the last one gives the logits
};

struct ClassifierTraining {
  int batch = 128;
  int epochs = 12;
  float lr = 1e-3f;   // falls along half a cosine, an epoch at a time
  int max_shift = 2;  // pixels: each image of a batch is moved at random by so much
  std::uint64_t seed = 0;
  // Called after each epoch (from 1) with the mean loss of its steps.
  std::function<void(int epoch, double loss)> on_epoch;
};

// Trains on all of `train`, whose classes are 0 to its largest label.
std::unique_ptr<Classifier> train_classifier(const Queue& queue, const DataSet& train,
                                             const ClassifierTraining& settings = {});

// What the classifier says of images.
struct Classified {
  std::int64_t count = 0;
  int width = 0, classes = 0;
  std::vector<float> features;       // [count, width]
  std::vector<float> probabilities;  // [count, classes], rows add up to 1
};
// images [count, C, H, W] in host memory, pixels in [-1, 1].
Classified classify(const Queue& queue, const Classifier& classifier, const float* images,
                    std::int64_t count);
Classified classify(const Queue& queue, const Classifier& classifier, const DataSet& data,
                    std::int64_t count);  // the data set's first images

// Images [first, first + count) of a data set, pixels in [-1, 1].
std::vector<float> scaled_images(const DataSet& data, std::int64_t first, std::int64_t count);

// The share of `test` that is named as its labels say.
double accuracy(const Queue& queue, const Classifier& classifier, const DataSet& test);

// A trained classifier's file: write_checkpoint(path, classifier.params(), metadata).
struct ClassifierRecord {
  std::string data;         // the data set's name
  std::string fingerprint;  // of its train split
  double accuracy = 0;      // on its test split
};
Metadata classifier_metadata(const Classifier& classifier, const ClassifierRecord& record);

struct LoadedClassifier {
  std::unique_ptr<Classifier> classifier;
  ClassifierRecord record;
};
// Throws Fault::data where the file holds no classifier.
LoadedClassifier read_classifier(const Queue& queue, const SafetensorsFile& file);

}  // namespace fm
