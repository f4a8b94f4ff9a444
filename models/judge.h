// The judge of sample quality: are these digits, or noise?
//
// A classifier of the data set (models/classifier.h) looks at the samples, and at two anchors that
// show what its figures mean: as many real images of the train split, and as much pure noise (a
// standard normal, what sampling starts from). The figures:
//   recognised  share of images of which the classifier is sure: largest probability >= 0.9
//   rarest      of all classes, the one that comes shortest: its share among the recognised over
//               its share among recognised real images; 0 where a class is missing
//   balance     effective number of classes of the recognised, exp(entropy), over the real one
//   variety     variance of features within a class over that of the test split, at most 1 a class,
//               mean over classes; 0 where one image stands for the class
//   frechet     Frechet distance between features of the images and of the test split
// The bar needs nothing but the anchors: samples pass where they are recognised at least as often
// as a half-and-half mix of the two anchors and lie no farther from the test split than that mix,
// where no class falls below a fifth of its share, and where balance and variety are at least half
// of what real images show. The reasons stand at BarRule.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/classifier.h"
#include "models/frechet.h"

namespace fm {

struct BarRule {
  // Below 0.9 noise counts (a third of it is above 0.5 on MNIST, 2 % above 0.9), above it real
  // digits do not (98 % are above 0.9, 91 % above 0.99).
  double sure = 0.9;
  // The question is "digits or noise": more like the one than like the other.
  double noise_share = 0.5;
  // A fair share of 1 000 samples is 100 +- 10 for ten classes: a fifth is far below chance, and
  // far above the 0.3 % that misread images of other classes lend to a missing one.
  double rarest = 0.2;
  // Half of the classes' effective number, half of the variance: the least that cannot be called
  // "most of it is missing".
  double balance = 0.5;
  double variety = 0.5;
};

struct Figures {
  double recognised = 0, rarest = 0, balance = 0, variety = 0, frechet = 0;
  std::vector<double> shares;   // [classes], among the recognised
  std::int64_t not_finite = 0;  // images with a NaN, looked at as blank paper
};

// One figure against its bar.
struct Mark {
  std::string name;
  double value, real, noise;  // the samples' and the anchors'
  double bar;
  bool at_least;    // else at most
  double margin;    // >= 1 passes: value / bar, or bar / value
  double position;  // 1 where real images are, 0 where noise is; may lie outside
};

struct Verdict {
  bool passes;
  std::vector<Mark> marks;  // of recognised, rarest, balance, variety, frechet
  double margin;            // the smallest
  Figures figures;
  std::string sentence;  // for people
};

class Judge {
 public:
  // For samples of `count` images: the Frechet distance and the shares of few images are off by
  // chance, so the anchors are measured on as many. Below some 20 images a class chance alone fails
  // a real set (by its rarest class): judge 1 000 or more. `classifier` must outlive the judge.
  // Throws Fault::runtime where real images would fail or noise would pass: such a classifier
  // judges nothing.
  Judge(const Queue& queue, const Classifier& classifier, const DataSet& train, const DataSet& test,
        std::int64_t count, const BarRule& rule = {});

  // samples [count, C, H, W], clamped to [-1, 1] as a picture of them would be.
  Verdict operator()(const std::vector<float>& samples) const;

  const Figures& real() const { return real_.figures; }
  const Figures& noise() const { return noise_.figures; }
  double frechet_bar() const { return frechet_bar_; }
  std::int64_t count() const { return count_; }

 private:
  struct Measured {
    Figures figures;
    FeatureStatistics features;
  };
  // Rarest and balance are left 0 until real_shares_ are known.
  Measured measure(std::vector<float> images) const;
  // The figures against the bar that the anchors set.
  Verdict verdict(const Figures& figures) const;

  Queue queue_;
  const Classifier& classifier_;
  std::int64_t count_;
  BarRule rule_;
  FeatureStatistics reference_;         // of the test split
  std::vector<double> class_variance_;  // of its features, by the class that the classifier sees
  std::vector<double> real_shares_;     // of recognised real images; empty until they are measured
  Measured real_, noise_;
  double frechet_bar_ = 0;
};

}  // namespace fm
