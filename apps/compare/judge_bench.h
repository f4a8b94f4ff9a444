// The judge of a comparison: its data, its classifier (trained once, kept in files), and a judge
// for each number of samples.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "engine/io/fields.h"
#include "models/judge.h"

namespace fm {

// The train and test split of one data set.
struct StudyData {
  DataSet train, test;
  std::string source;  // what finds the same set again
};
// Of a source as load_data() takes it; says on stderr what needs a word.
StudyData load_study_data(const std::string& source, int threads);

class JudgeBench {
 public:
  // `folder` is the comparison's. The classifier is the one in folder/classifier.safetensors, else
  // the cache's ($XDG_CACHE_HOME/fm/judge), else trained now and written to both; one of other
  // `epochs` than the default's stays out of the cache. Says which, and its accuracy, on stderr.
  JudgeBench(const Queue& queue, const StudyData& data, const std::filesystem::path& folder,
             int epochs);

  // The judge for `count` samples, made when first asked for.
  const Judge& judge(std::int64_t count);

  // Of these images, the share that the classifier takes for what `labels` say.
  double share_named(const std::vector<float>& images,
                     const std::vector<std::int32_t>& labels) const;

  double accuracy() const { return record_.accuracy; }
  const StudyData& data() const { return data_; }
  const Queue& queue() const { return queue_; }
  int classes() const { return classifier_->config().classes; }

 private:
  bool take(const std::filesystem::path& path);  // false where there is no classifier of this data

  Queue queue_;
  const StudyData& data_;
  std::unique_ptr<Classifier> classifier_;
  ClassifierRecord record_;
  std::map<std::int64_t, std::unique_ptr<Judge>> judges_;
};

// What a report says of the judge: accuracy, the anchors, and the bar of each figure.
Json judge_json(const Verdict& verdict, const Judge& judge, double accuracy);
// {"passes", "margin", "sentence", "marks", "shares", "not_finite"}
Json verdict_json(const Verdict& verdict);

}  // namespace fm
