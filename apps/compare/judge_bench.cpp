#include "apps/compare/judge_bench.h"

#include <algorithm>
#include <cstdio>

#include "apps/data_source.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "engine/io/checkpoint.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr double kGoodAccuracy = 0.985;  // below it a judge of MNIST is not to be trusted

fs::path cached_classifier(const DataSet& train) {
  return mnist_cache().parent_path() / "judge" /
         ("classifier-" + train.fingerprint.substr(0, 16) + ".safetensors");
}

// A cache that cannot be written is a pity, no more.
void try_to_write(const fs::path& path, Classifier& classifier, const ClassifierRecord& record) {
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  try {
    write_checkpoint(path, classifier.params(), classifier_metadata(classifier, record));
  } catch (const Error& error) {
    std::fprintf(stderr, "the classifier is not kept: %s\n", error.what());
  }
}

}  // namespace

StudyData load_study_data(const std::string& source, int threads) {
  CpuQueue host(threads);
  DataChoice train = load_data(source, Split::train, host);
  if (!train.note.empty()) std::fprintf(stderr, "%s\n", train.note.c_str());
  DataChoice test = load_data(train.source, Split::test, host);
  return {std::move(train.data), std::move(test.data), train.source};
}

bool JudgeBench::take(const fs::path& path) {
  if (!fs::is_regular_file(path)) return false;
  try {
    LoadedClassifier loaded = read_classifier(queue_, SafetensorsFile(path));
    if (loaded.record.fingerprint != data_.train.fingerprint) return false;
    classifier_ = std::move(loaded.classifier);
    record_ = loaded.record;
    return true;
  } catch (const Error& error) {  // cut short, or of another version: it is trained anew
    std::fprintf(stderr, "%s is not used: %s\n", path.c_str(), error.what());
    return false;
  }
}

JudgeBench::JudgeBench(const Queue& queue, const StudyData& data, const fs::path& folder,
                       int epochs)
    : queue_(queue), data_(data) {
  const fs::path own = folder / "classifier.safetensors", cache = cached_classifier(data.train);
  const bool usual = epochs == ClassifierTraining{}.epochs;
  std::string from = own.string();
  if (!take(own)) {
    from = cache.string();
    if (!usual || !take(cache)) {
      from = "trained now";
      Progress progress("classifier", static_cast<std::uint64_t>(epochs));
      progress.line(concat("training the judge's classifier on ", data.train.name));
      ClassifierTraining training;
      training.epochs = epochs;
      training.on_epoch = [&](int epoch, double loss) {
        throw_if_interrupted();
        progress.update(static_cast<std::uint64_t>(epoch), concat("loss ", loss));
      };
      classifier_ = train_classifier(queue, data.train, training);
      record_ = {data.train.name, data.train.fingerprint,
                 fm::accuracy(queue, *classifier_, data.test)};
      if (usual) try_to_write(cache, *classifier_, record_);
    }
    try_to_write(own, *classifier_, record_);
  }
  std::fprintf(stderr, "the judge's classifier (%s) names %.2f %% of %s's test split%s\n",
               from.c_str(), 100 * record_.accuracy, data.test.name.c_str(),
               record_.accuracy < kGoodAccuracy ? ": less than 98.5 %, do not trust it far" : "");
}

const Judge& JudgeBench::judge(std::int64_t count) {
  std::unique_ptr<Judge>& judge = judges_[count];
  if (!judge) judge = std::make_unique<Judge>(queue_, *classifier_, data_.train, data_.test, count);
  return *judge;
}

double JudgeBench::share_named(const std::vector<float>& images,
                               const std::vector<std::int32_t>& labels) const {
  const auto count = static_cast<std::int64_t>(labels.size());
  const Classified said = classify(queue_, *classifier_, images.data(), count);
  std::int64_t right = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = said.probabilities.data() + i * said.classes;
    right += std::max_element(row, row + said.classes) - row == labels[static_cast<std::size_t>(i)];
  }
  return static_cast<double>(right) / static_cast<double>(count);
}

Json judge_json(const Verdict& verdict, const Judge& judge, double accuracy) {
  Json json;
  json["classifier_accuracy"] = accuracy;
  json["count"] = judge.count();
  json["frechet_real"] = judge.real().frechet;
  json["frechet_noise"] = judge.noise().frechet;
  json["marks"] = Json::array();
  for (const Mark& m : verdict.marks)
    json["marks"].push_back({{"name", m.name},
                             {"at_least", m.at_least},
                             {"bar", m.bar},
                             {"real", m.real},
                             {"noise", m.noise}});
  return json;
}

Json verdict_json(const Verdict& verdict) {
  Json json;
  json["passes"] = verdict.passes;
  json["margin"] = verdict.margin;
  json["sentence"] = verdict.sentence;
  json["frechet"] = verdict.figures.frechet;
  json["recognised"] = verdict.figures.recognised;
  json["not_finite"] = verdict.figures.not_finite;
  json["marks"] = Json::array();
  for (const Mark& m : verdict.marks)
    json["marks"].push_back(
        {{"name", m.name}, {"value", m.value}, {"margin", m.margin}, {"position", m.position}});
  json["shares"] = verdict.figures.shares;
  return json;
}

}  // namespace fm
