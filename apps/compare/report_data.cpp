#include "apps/compare/report_data.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include "apps/compare/evaluated_run.h"
#include "apps/compare/figures.h"
#include "apps/compare/study.h"
#include "apps/environment.h"
#include "apps/run_folder.h"
#include "engine/io/atomic_file.h"
#include "engine/io/base64.h"
#include "models/decision.h"

namespace fm {
namespace {

namespace fs = std::filesystem;
using Run = EvaluatedRun;

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm date{};
  gmtime_r(&now, &date);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d", &date);
  return text;
}

Json picture(const fs::path& path) {
  const std::string bytes = text_of(path);
  return bytes.empty() ? Json() : Json(png_uri(bytes));
}

// As the comparison was asked for, else the study's order, others after them.
std::vector<std::string> backbone_order(const fs::path& folder, const std::vector<Run>& runs) {
  std::vector<std::string> order;
  const auto add = [&](const std::string& name) {
    const bool there = std::any_of(runs.begin(), runs.end(), [&](const Run& run) {
      return run.backbone == name && !run.conditional;
    });
    if (there && std::find(order.begin(), order.end(), name) == order.end()) order.push_back(name);
  };
  if (const auto plan = RunFolder(folder).read_json("compare.json"))
    for (const Json& one : plan->at("backbones")) add(one.at("name"));
  for (const char* name : {"mamba", "transformer", "hybrid"}) add(name);
  for (const Run& run : runs) add(run.backbone);
  return order;
}

Json mean_bins(const std::vector<const Run*>& runs) {
  Json bins;
  for (const char* split : {"test", "train"}) {
    std::vector<double> sums;
    int count = 0;
    for (const Run* run : runs) {
      if (!run->evaluation.contains("loss_bins")) continue;
      const Json& one = run->evaluation.at("loss_bins").at(split);
      sums.resize(one.size());
      for (std::size_t i = 0; i < one.size(); ++i) sums[i] += number(one[i]);
      ++count;
    }
    for (double& sum : sums) sum /= count;
    bins[split] = sums;
  }
  return bins;
}

Json run_json(const Run& run) {
  Json json;
  const Json& e = run.evaluation;
  json["seed"] = run.seed;
  json["folder"] = "runs/" + run.folder.filename().string();
  json["loss"] = run.of_summary("final_epoch_loss");
  json["half_loss"] = run.of_summary("half");
  json["held_out"] = e.contains("held_out_loss") ? e.at("held_out_loss") : Json();
  json["step_ms"] = run.of_summary("step_ms", "median");
  json["step_p90_ms"] = run.of_summary("step_ms", "p90");
  json["wall_s"] = run.wall_s();
  json["peak_memory_bytes"] = run.of_summary("peak_memory_bytes", "allocator");
  json["passes"] = run.passes();
  for (const char* field : {"margin", "sentence", "marks", "shares"})
    json[field] = e.contains("verdict") ? e.at("verdict").at(field) : Json();
  json["device"] = run.device;
  json["curve"] = loss_curve(run);
  json["failed"] = e.at("failed");
  return json;
}

Json backbone_json(const std::string& name, const std::vector<const Run*>& runs) {
  const Run& first = *runs.front();
  Json json;
  json["name"] = name;
  json["label"] = first.label;
  const Run* judged = nullptr;  // the first with samples
  for (const Run* run : runs)
    if (!judged && !run->failed()) judged = run;
  json["failed"] = judged ? Json() : first.evaluation.at("failed");
  const Json none = Json::object();
  const Json& seen = judged ? judged->evaluation : none;
  for (const char* field : {"blocks", "tokens", "params", "flops"})
    json[field] = seen.contains(field) ? seen.at(field) : Json();
  const auto over_seeds = [&](const char* field, auto value) {
    std::vector<double> values;
    for (const Run* run : runs)
      if (!run->failed()) values.push_back(value(*run));
    json[field] = statistic(values);
  };
  over_seeds("loss", [](const Run& r) { return r.of_summary("final_epoch_loss"); });
  over_seeds("half_loss", [](const Run& r) { return r.of_summary("half"); });
  over_seeds("held_out", [](const Run& r) { return number(r.evaluation.at("held_out_loss")); });
  over_seeds("step_ms", [](const Run& r) { return r.of_summary("step_ms", "median"); });
  over_seeds("step_p90_ms", [](const Run& r) { return r.of_summary("step_ms", "p90"); });
  over_seeds("images_per_s", [](const Run& r) {
    return 1e3 * number(r.evaluation.at("train").at("batch")) / r.of_summary("step_ms", "median");
  });
  over_seeds("wall_s", [](const Run& r) { return r.wall_s(); });
  over_seeds("peak_memory_bytes",
             [](const Run& r) { return r.of_summary("peak_memory_bytes", "allocator"); });
  over_seeds("driver_memory_bytes",
             [](const Run& r) { return r.of_summary("peak_memory_bytes", "driver"); });
  over_seeds("frechet", [](const Run& r) { return r.of_verdict("frechet"); });
  over_seeds("recognised", [](const Run& r) { return r.of_verdict("recognised"); });
  json["loss_bins"] = mean_bins(runs);
  json["runs"] = Json::array();
  std::vector<Json> curves;
  for (const Run* run : runs) {
    json["runs"].push_back(run_json(*run));
    if (!run->failed()) curves.push_back(json["runs"].back().at("curve"));
  }
  json["curve"] = mean_curve(curves);
  json["grid"] = judged ? picture(judged->folder / "evaluation/grid.png") : Json();
  json["nearest"] = nullptr;
  if (seen.contains("nearest")) {
    json["nearest"] = seen.at("nearest");
    json["nearest"]["image"] = picture(judged->folder / "evaluation/nearest.png");
  }
  for (const char* field : {"steps_quality", "latency"}) {
    json[field] = Json::array();
    for (const Run* run : runs)
      if (json[field].empty() && run->evaluation.contains(field))
        json[field] = run->evaluation.at(field);
  }
  return json;
}

Json judge_of(const std::vector<Run>& runs) {
  for (const Run& run : runs)
    if (run.evaluation.contains("judge")) {
      Json judge = run.evaluation.at("judge");
      judge["rule"] =
          "Samples are digits where they are recognised at least as often as a half-and-half mix "
          "of real images and noise and lie no farther from the test split than that mix, where "
          "no class falls below a fifth of its share, and where the balance of classes and the "
          "variety within them are at least half of what real images show.";
      return judge;
    }
  return nullptr;
}

Json protocol_of(const Run& run, std::size_t seeds) {
  const Json& t = run.evaluation.at("train");
  const Json& e = run.evaluation.at("evaluation");
  Json pairs = Json::array();
  const auto add = [&](const char* key, const std::string& value) {
    pairs.push_back({key, value});
  };
  const auto plain = [](const Json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  const double images = number(run.evaluation.at("data").at("train_images"));
  const double steps = number(run.evaluation.at("steps")), batch = number(t.at("batch"));
  add("training images", plain(run.evaluation.at("data").at("train_images")));
  add("steps", plain(run.evaluation.at("steps")));
  add("epochs", figure(steps / std::floor(images / batch), 1));
  add("batch", plain(t.at("batch")));
  add("AdamW", concat("lr ", plain(t.at("lr")), ", weight decay ", plain(t.at("weight_decay")),
                      ", clip ", plain(t.at("grad_clip"))));
  add("warm-up", plain(t.at("warmup_steps")) + " steps");
  add("cooldown", concat(100 * t.value("cooldown", 0.0), " % of the steps"));
  add("average of weights",
      number(t.at("ema_decay")) > 0 ? "decay " + plain(t.at("ema_decay")) : "none");
  add("precision", plain(run.evaluation.at("dtype")));
  add("tokens", plain(run.evaluation.at("tokens")));
  add("samples judged", concat(plain(e.at("judged")), ", ", plain(e.at("steps")), " ",
                               plain(e.at("solver")), " steps, the same noise for all"));
  add("seeds", concat(seeds));
  return pairs;
}

Json decision_of(const Json& backbones) {
  const DecisionRule rule;
  std::vector<CandidateRuns> candidates;
  for (const Json& one : backbones) {
    CandidateRuns c{one.at("label"), {}};
    for (const Json& run : one.at("runs"))
      c.runs.push_back({c.name, run.at("passes"), number(run.at("loss")), number(run.at("step_ms")),
                        number(run.at("peak_memory_bytes"))});
    candidates.push_back(c);
  }
  const SureRuling sure = decide_over_seeds(candidates, rule);
  static constexpr const char* kStandings[] = {"winner", "eliminated",  "worse",
                                               "slower", "higher_loss", "more_memory"};
  Json json;
  json["sentence"] = sure.ruling.sentence;
  json["certainty"] =
      sure.sentence.substr(std::min(sure.ruling.sentence.size() + 1, sure.sentence.size()));
  json["winner"] = sure.ruling.winner < 0
                       ? Json()
                       : backbones[static_cast<std::size_t>(sure.ruling.winner)].at("name");
  json["same"] = sure.same;
  json["nobody"] = sure.nobody;
  json["fewest_seeds"] = sure.fewest_seeds;
  json["rule"] = {
      "A backbone whose samples fail the bar is eliminated, whatever its loss or speed.",
      concat("Equivalent in quality: those that pass, with a loss of at most ",
             figure(rule.loss_ratio, 2), " times the best."),
      concat("Equivalent in speed: those of them with a time a step of at most ",
             figure(rule.time_ratio, 2), " times the fastest."),
      "Among those the lowest loss wins; of equal losses, the lower peak memory."};
  json["candidates"] = Json::array();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& mean = sure.means[i];
    json["candidates"].push_back(
        {{"name", backbones[i].at("name")},
         {"label", mean.name},
         {"passes", mean.passes},
         {"loss", mean.loss},
         {"step_ms", mean.step_ms},
         {"peak_memory_bytes", mean.peak_memory},
         {"standing", kStandings[static_cast<std::size_t>(sure.ruling.standings[i])]},
         {"reason", sure.ruling.reasons[i]},
         {"wins", sure.wins[i]}});
  }
  return json;
}

// The trajectories of one kind of runs, whose rows agree with the first one's.
Json viewer_set(const std::vector<Run>& runs, const std::vector<std::string>& order, bool classes,
                Json& frame) {
  Json set;
  for (const std::string& name : order) {
    for (const Run& run : runs) {
      if (run.backbone != name || run.conditional != classes || !run.evaluation.contains("viewer"))
        continue;
      const Json& viewer = run.evaluation.at("viewer");
      if (frame.is_null()) frame = viewer.at("frame");
      if (set.is_null()) {
        set["kind"] = classes ? "classes" : "seeds";
        set["title"] = classes ? "By digit" : "By noise";
        set["cfg_scale"] = viewer.at("cfg_scale");
        set["rows"] = viewer.at("rows");
        set["backbones"] = Json::array();
      }
      if (viewer.at("rows") != set["rows"] || viewer.at("frame") != frame) continue;
      set["backbones"].push_back(
          {{"name", name},
           {"label", run.label},
           {"states", picture(run.folder / "evaluation/states.png")},
           {"velocities", picture(run.folder / "evaluation/velocities.png")},
           {"passes", classes ? Json() : Json(run.passes())},
           {"obeys",
            run.evaluation.contains("obeys") ? run.evaluation.at("obeys").at("share") : Json()}});
      break;  // one seed of a backbone
    }
  }
  return set;
}

Json viewer_of(const std::vector<Run>& runs, const std::vector<std::string>& order) {
  Json frame, sets = Json::array();
  for (const bool classes : {true, false})
    if (const Json set = viewer_set(runs, order, classes, frame); !set.is_null())
      sets.push_back(set);
  if (sets.empty()) return nullptr;
  frame["sets"] = sets;
  return frame;
}

}  // namespace

Json gather_report(const fs::path& folder) {
  const std::vector<Run> runs = evaluated_runs(folder);
  const std::vector<std::string> order = backbone_order(folder, runs);
  if (order.empty())
    fail(Fault::data, "[report] ", (folder / "runs").string(),
         " holds class-conditional runs alone; the decision is about the others");
  const Run* described = nullptr;  // whose settings stand for all
  std::vector<std::uint64_t> seeds;
  std::vector<std::string> devices;
  for (const Run& run : runs) {
    if (run.conditional) continue;
    if (!described && !run.failed()) described = &run;
    if (std::find(seeds.begin(), seeds.end(), run.seed) == seeds.end()) seeds.push_back(run.seed);
    if (run.device.is_string() &&
        std::find(devices.begin(), devices.end(), run.device.get<std::string>()) == devices.end())
      devices.push_back(run.device);
  }
  std::sort(seeds.begin(), seeds.end());
  Json report;
  report["format"] = 1;
  const Json data = described ? described->evaluation.at("data") : Json();
  const char* const counts[] = {"No", "One", "Two", "Three", "Four", "Five"};
  report["title"] = concat(order.size() < 6 ? counts[order.size()] : concat(order.size()).c_str(),
                           order.size() == 1 ? " backbone" : " backbones", " on ",
                           data.is_null() ? "no data" : data.at("name").get<std::string>());
  report["version"] = version_text();
  report["date"] = today();
  report["preset"] = runs.front().evaluation.at("preset");
  report["data"] = data;
  report["devices"] = devices;
  report["protocol"] = described ? protocol_of(*described, seeds.size()) : Json::array();
  report["seeds"] = seeds;
  report["decision"] = nullptr;  // its place in the file
  report["published"] = published_study();
  report["disagreements"] = nullptr;
  report["judge"] = judge_of(runs);
  report["backbones"] = Json::array();
  for (const std::string& name : order) {
    std::vector<const Run*> own;
    for (const Run& run : runs)
      if (run.backbone == name && !run.conditional) own.push_back(&run);
    report["backbones"].push_back(backbone_json(name, own));
  }
  report["decision"] = decision_of(report["backbones"]);
  report["plots"] = Json::array();
  report["sweep"] = RunFolder(folder).read_json("sweep.json").value_or(Json());
  report["viewer"] = viewer_of(runs, order);
  report["disagreements"] = disagreements(report);
  return report;
}

}  // namespace fm
