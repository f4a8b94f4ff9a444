#include "apps/compare/evaluated_run.h"

#include <cstdio>
#include <sstream>
#include <tuple>
#include <utility>

#include "apps/compare/evaluate.h"
#include "apps/run_folder.h"
#include "engine/io/atomic_file.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kFileLimit = 1 << 26;  // bytes of a picture or a log
constexpr std::size_t kFewestEpochs = 5;      // below them a curve is made of the log's rows
constexpr std::size_t kMostLogPoints = 60;    // of such a curve: means of neighbouring rows

}  // namespace

std::string text_of(const fs::path& path) {
  if (!fs::is_regular_file(path)) return "";
  const auto bytes = read_file(path, kFileLimit);
  return {bytes.begin(), bytes.end()};
}

std::vector<EvaluatedRun> evaluated_runs(const fs::path& folder) {
  std::vector<EvaluatedRun> runs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder / "runs", error)) {
    const auto evaluation = read_evaluation(entry.path());
    if (!evaluation) continue;
    const RunFolder run(entry.path());
    const Json env = run.read_json("env.json").value_or(Json::object());
    runs.push_back({entry.path(), evaluation->at("backbone"), evaluation->at("label"),
                    evaluation->at("seed"), evaluation->at("conditional"), *evaluation,
                    run.read_json("summary.json").value_or(Json::object()),
                    env.contains("device") ? env.at("device") : Json()});
  }
  if (runs.empty())
    fail(Fault::data, "[report] ", (folder / "runs").string(), " holds no evaluated run");
  std::sort(runs.begin(), runs.end(), [](const EvaluatedRun& a, const EvaluatedRun& b) {
    return std::tie(a.backbone, a.conditional, a.seed) <
           std::tie(b.backbone, b.conditional, b.seed);
  });
  return runs;
}

Json loss_curve(const EvaluatedRun& run) {
  std::vector<double> steps, epochs, losses;
  std::istringstream metrics(text_of(run.folder / "metrics.csv"));
  std::string line;
  std::getline(metrics, line);  // the header
  while (std::getline(metrics, line)) {
    double epoch, step, loss;
    if (std::sscanf(line.c_str(), "%lf,%lf,%lf", &epoch, &step, &loss) != 3) continue;
    epochs.push_back(epoch), steps.push_back(step), losses.push_back(loss);
  }
  if (steps.size() < kFewestEpochs) {
    const Json& e = run.evaluation;
    const double per_epoch = e.contains("train")
                                 ? std::floor(number(e.at("data").at("train_images")) /
                                              number(e.at("train").at("batch")))
                                 : std::nan("");
    std::vector<std::pair<double, double>> rows;
    std::istringstream log(text_of(run.folder / "log.jsonl"));
    while (std::getline(log, line)) {
      const Json row = Json::parse(line, nullptr, false);
      if (row.is_object() && row.contains("step"))
        rows.push_back({row["step"], number(row["loss"])});
    }
    steps.clear(), epochs.clear(), losses.clear();
    const std::size_t together = (rows.size() + kMostLogPoints - 1) / kMostLogPoints;
    for (std::size_t i = 0; i < rows.size(); i += together) {
      const std::size_t end = std::min(i + together, rows.size());
      double step = 0, loss = 0;
      for (std::size_t k = i; k < end; ++k) step += rows[k].first, loss += rows[k].second;
      const auto n = static_cast<double>(end - i);
      steps.push_back(step / n), losses.push_back(loss / n);
      epochs.push_back(step / n / per_epoch);
    }
  }
  return {{"steps", steps}, {"epochs", epochs}, {"loss", losses}};
}

Json mean_curve(const std::vector<Json>& curves) {
  if (curves.empty())
    return {{"steps", Json::array()}, {"epochs", Json::array()}, {"loss", Json::array()}};
  Json mean = curves.front();
  for (const Json& curve : curves)
    if (curve.at("steps") != mean.at("steps")) return mean;
  for (std::size_t i = 0; i < mean.at("loss").size(); ++i) {
    double sum = 0;
    for (const Json& curve : curves) sum += number(curve.at("loss")[i]);
    mean["loss"][i] = sum / static_cast<double>(curves.size());
  }
  return mean;
}

}  // namespace fm
