#include "models/judge.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>

#include "kernels/base/rng.h"

namespace fm {
namespace {

constexpr std::uint64_t kAnchorSeed = 28;  // which real images and which noise the anchors are

// Which class each image is seen as, and whether the classifier is sure of it.
struct Seen {
  std::vector<int> classes;
  std::vector<bool> sure;
};
Seen seen(const Classified& said, double sure) {
  Seen result;
  for (std::int64_t i = 0; i < said.count; ++i) {
    const float* row = said.probabilities.data() + i * said.classes;
    const float* best = std::max_element(row, row + said.classes);
    result.classes.push_back(static_cast<int>(best - row));
    result.sure.push_back(*best >= sure);
  }
  return result;
}

// The trace of the covariance of features within each class; 0 for fewer than two images.
std::vector<double> class_variances(const Classified& said, const Seen& seen) {
  const auto width = static_cast<std::size_t>(said.width);
  const auto classes = static_cast<std::size_t>(said.classes);
  std::vector<double> count(classes), mean(classes * width), variance(classes);
  const auto each = [&](auto&& visit) {
    for (std::size_t i = 0; i < seen.classes.size(); ++i)
      visit(static_cast<std::size_t>(seen.classes[i]), said.features.data() + i * width);
  };
  each([&](std::size_t k, const float* row) {
    ++count[k];
    for (std::size_t j = 0; j < width; ++j) mean[k * width + j] += row[j];
  });
  for (std::size_t i = 0; i < mean.size(); ++i) mean[i] /= std::max(count[i / width], 1.0);
  each([&](std::size_t k, const float* row) {
    for (std::size_t j = 0; j < width; ++j) {
      const double d = row[j] - mean[k * width + j];
      variance[k] += d * d;
    }
  });
  for (std::size_t k = 0; k < classes; ++k) variance[k] /= std::max(count[k] - 1, 1.0);
  return variance;
}

double effective_classes(const std::vector<double>& shares) {
  double entropy = 0, sum = 0;
  for (const double share : shares) {
    if (share > 0) entropy -= share * std::log(share);
    sum += share;
  }
  return sum > 0 ? std::exp(entropy) : 0;
}

// The statistics of a set of which `b_share` is from b and the rest from a.
FeatureStatistics mixed(const FeatureStatistics& a, const FeatureStatistics& b, double b_share) {
  FeatureStatistics mix = a;
  const auto n = static_cast<std::size_t>(a.width);
  for (std::size_t i = 0; i < n; ++i) mix.mean[i] += b_share * (b.mean[i] - a.mean[i]);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      mix.covariance[i * n + j] +=
          b_share * (b.covariance[i * n + j] - a.covariance[i * n + j]) +
          b_share * (1 - b_share) * (a.mean[i] - b.mean[i]) * (a.mean[j] - b.mean[j]);
  return mix;
}

// `count` images of the data set, in an order drawn by the anchors' seed.
std::vector<float> drawn_images(const DataSet& data, std::int64_t count) {
  const Permutation order(static_cast<std::uint64_t>(data.count), kAnchorSeed, 0);
  std::vector<float> images;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::int64_t>(order(static_cast<std::uint64_t>(i)));
    const std::vector<float> one = scaled_images(data, at, 1);
    images.insert(images.end(), one.begin(), one.end());
  }
  return images;
}

std::vector<float> noise_images(std::int64_t count, std::int64_t pixels) {
  std::vector<float> images(static_cast<std::size_t>(count * pixels));
  for (std::int64_t i = 0; i < count; ++i)
    fill_normals({kAnchorSeed, stream::sampling, 0, static_cast<std::uint32_t>(i)}, 0, pixels,
                 images.data() + i * pixels);
  return images;
}

// As a picture shows them; an image with a NaN becomes paper. Returns how many there were.
std::int64_t make_visible(std::vector<float>& images, std::int64_t pixels) {
  std::int64_t not_finite = 0;
  for (auto image = images.begin(); image != images.end(); image += pixels) {
    if (std::any_of(image, image + pixels, [](float x) { return std::isnan(x); })) {
      std::fill(image, image + pixels, -1.0f);
      ++not_finite;
    }
    for (auto x = image; x != image + pixels; ++x) *x = std::clamp(*x, -1.0f, 1.0f);
  }
  return not_finite;
}

Mark mark(const char* name, bool at_least, double value, double real, double noise, double bar) {
  constexpr double kNone = std::numeric_limits<double>::min();  // no division by zero
  const double margin =
      at_least ? value / std::max(bar, kNone) : std::max(bar, kNone) / std::max(value, kNone);
  return {name, value, real, noise, bar, at_least, margin, (value - noise) / (real - noise)};
}

std::string text(const Mark& m) {
  char line[160];
  std::snprintf(line, sizeof line, "%s %.3g (bar: at %s %.3g; real %.3g, noise %.3g)",
                m.name.c_str(), m.value, m.at_least ? "least" : "most", m.bar, m.real, m.noise);
  return line;
}

std::string sentence_of(const Verdict& verdict) {
  std::string marks, failed;
  for (const Mark& m : verdict.marks) {
    marks += (marks.empty() ? "" : ", ") + text(m);
    if (m.margin < 1) failed += (failed.empty() ? "" : ", ") + text(m);
  }
  std::string sentence =
      verdict.passes ? "Digits: " + marks + "." : "Not digits: fails on " + failed + ".";
  if (verdict.figures.not_finite)
    sentence += concat(" ", verdict.figures.not_finite, " images are not finite.");
  return sentence;
}

}  // namespace

Judge::Judge(const Queue& queue, const Classifier& classifier, const DataSet& train,
             const DataSet& test, std::int64_t count, const BarRule& rule)
    : queue_(queue), classifier_(classifier), count_(count), rule_(rule) {
  FM_CHECK(count >= 2 && count <= train.count,
           "[judge] it needs between 2 samples and as many as the train split holds (", train.count,
           "), got ", count);
  const Classified said = classify(queue, classifier, test, test.count);
  reference_ = feature_statistics(said.features.data(), said.count, said.width);
  class_variance_ = class_variances(said, seen(said, rule.sure));
  real_ = measure(drawn_images(train, count));
  real_shares_ = real_.figures.shares;
  real_.figures.rarest = real_.figures.balance = 1;
  noise_ = measure(noise_images(count, train.pixels_per_image()));
  frechet_bar_ =
      frechet_distance(mixed(real_.features, noise_.features, rule.noise_share), reference_);
  for (const bool wanted : {true, false}) {
    const Verdict anchor = verdict(wanted ? real_.figures : noise_.figures);
    if (anchor.passes != wanted)
      fail(Fault::runtime, "[judge] the classifier cannot tell real images from noise: ",
           wanted ? "real images get: " : "noise gets: ", anchor.sentence);
  }
}

Judge::Measured Judge::measure(std::vector<float> images) const {
  const ClassifierConfig& config = classifier_.config();
  const std::int64_t pixels = std::int64_t{config.channels} * config.image * config.image;
  FM_CHECK(static_cast<std::int64_t>(images.size()) == count_ * pixels, "[judge] it was made for ",
           count_, " images of ", pixels, " pixels, got ", images.size(), " values");
  Measured result;
  Figures& f = result.figures;
  f.not_finite = make_visible(images, pixels);
  const Classified said = classify(queue_, classifier_, images.data(), count_);
  const Seen who = seen(said, rule_.sure);
  const auto classes = static_cast<std::size_t>(said.classes);

  const auto recognised = std::count(who.sure.begin(), who.sure.end(), true);
  f.recognised = static_cast<double>(recognised) / static_cast<double>(count_);
  f.shares.assign(classes, 0);
  for (std::size_t i = 0; i < who.classes.size(); ++i)
    if (who.sure[i])
      f.shares[static_cast<std::size_t>(who.classes[i])] += 1 / static_cast<double>(recognised);
  if (!real_shares_.empty()) {
    f.rarest = std::numeric_limits<double>::infinity();
    for (std::size_t k = 0; k < classes; ++k)
      if (real_shares_[k] > 0) f.rarest = std::min(f.rarest, f.shares[k] / real_shares_[k]);
    f.balance = effective_classes(f.shares) / effective_classes(real_shares_);
  }

  const std::vector<double> variance = class_variances(said, who);
  double varied = 0;
  for (std::size_t k = 0; k < classes; ++k) {
    if (class_variance_[k] <= 0) continue;  // the test split has no such class
    f.variety += std::min(variance[k] / class_variance_[k], 1.0);
    ++varied;
  }
  f.variety /= std::max(varied, 1.0);

  result.features = feature_statistics(said.features.data(), said.count, said.width);
  f.frechet = frechet_distance(result.features, reference_);
  return result;
}

Verdict Judge::verdict(const Figures& f) const {
  const Figures &real = real_.figures, &noise = noise_.figures;
  const double recognised_bar =
      (1 - rule_.noise_share) * real.recognised + rule_.noise_share * noise.recognised;
  Verdict v{.passes = false,
            .marks = {mark("recognised", true, f.recognised, real.recognised, noise.recognised,
                           recognised_bar),
                      mark("rarest class", true, f.rarest, real.rarest, noise.rarest, rule_.rarest),
                      mark("balance", true, f.balance, real.balance, noise.balance, rule_.balance),
                      mark("variety", true, f.variety, real.variety, noise.variety,
                           rule_.variety * real.variety),
                      mark("Frechet distance", false, f.frechet, real.frechet, noise.frechet,
                           frechet_bar_)},
            .margin = std::numeric_limits<double>::infinity(),
            .figures = f,
            .sentence = {}};
  for (const Mark& m : v.marks) v.margin = std::min(v.margin, m.margin);
  v.passes = v.margin >= 1;
  v.sentence = sentence_of(v);
  return v;
}

Verdict Judge::operator()(const std::vector<float>& samples) const {
  return verdict(measure(samples).figures);
}

}  // namespace fm
