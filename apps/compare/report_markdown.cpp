#include "apps/compare/report_markdown.h"

#include <algorithm>

#include "apps/compare/compare_config.h"
#include "apps/compare/figures.h"

namespace fm {
namespace {

using Row = std::vector<std::string>;

std::string line_of(const Row& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += " " + cell + " |";
  return line + "\n";
}

std::string table(const Row& head, const std::vector<Row>& rows) {
  std::string text = line_of(head) + line_of(Row(head.size(), "---"));
  for (const Row& row : rows) text += line_of(row);
  return text + "\n";
}

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.is_null() ? "-" : value.dump();
}

std::string passes(const Json& backbone) {
  int passed = 0, runs = 0;
  for (const Json& run : backbone.at("runs")) passed += run.at("passes") == true, ++runs;
  const std::string verdict = passed == runs ? "digits" : passed == 0 ? "not digits" : "mixed";
  return runs == 1 ? verdict : concat(verdict, " (", passed, " of ", runs, ")");
}

// The study's own table, what it published above what is measured here.
std::string study_table(const Json& report) {
  std::vector<Row> rows;
  for (const Json& one : report.at("backbones")) {
    for (const Json& p : report.at("published").at("rows"))
      if (p.at("name") == one.at("name"))
        rows.push_back({one.at("label"), "published",
                        figure(number(p.at("params")) / 1e6, 1) + " M", "",
                        figure(p.at("half_loss"), 3), figure(p.at("step_ms"), 0),
                        figure(p.at("memory_gb"), 1), figure(p.at("minutes"), 0), p.at("samples")});
    rows.push_back({one.at("label"), "measured", text_of(one.at("params")),
                    spread(one.at("loss"), 1, 4), spread(one.at("half_loss"), 1, 4),
                    spread(one.at("step_ms"), 1, 2), spread(one.at("peak_memory_bytes"), 1e-9, 2),
                    spread(one.at("wall_s"), 1.0 / 60, 1),
                    one.at("failed").is_null() ? passes(one) : "failed"});
  }
  return table({"backbone", "", "parameters", "final-epoch loss", "half of it", "step, ms",
                "peak memory, GB", "training, min", "samples"},
               rows);
}

std::string more_figures(const Json& report) {
  std::vector<Row> rows;
  for (const Json& one : report.at("backbones")) {
    const Json& f = one.at("flops");
    const auto flops = [&](const char* field, double scale) {
      return f.is_null() ? std::string("-") : significant(number(f.at(field)) * scale, 3);
    };
    rows.push_back({one.at("label"), spread(one.at("held_out"), 1, 4),
                    spread(one.at("step_p90_ms"), 1, 2), spread(one.at("images_per_s"), 1, 0),
                    flops("forward", 1e-9), flops("step", 1e-9), flops("scan_share", 100) + " %",
                    flops("attention_share", 100) + " %",
                    spread(one.at("driver_memory_bytes"), 1e-9, 2)});
  }
  return table({"backbone", "held-out loss", "step p90, ms", "images/s", "GFLOP forward an image",
                "GFLOP a step", "of it scan", "of it attention", "memory the driver saw, GB"},
               rows);
}

std::string bins_table(const Json& report) {
  Row head = {"loss, t in"};
  for (int bin = 0; bin < 10; ++bin)
    head.push_back(concat(".", bin, bin < 9 ? concat("-.", bin + 1) : "-1"));
  std::vector<Row> rows;
  for (const Json& one : report.at("backbones")) {
    for (const char* split : {"test", "train"}) {
      Row row = {concat(one.at("label").get<std::string>(), ", ", split)};
      for (const Json& loss : one.at("loss_bins").at(split)) row.push_back(figure(loss, 3));
      row.resize(head.size(), "-");
      rows.push_back(row);
    }
  }
  return table(head, rows);
}

std::string judge_text(const Json& report) {
  const Json& judge = report.at("judge");
  if (judge.is_null()) return "No run could be judged.\n\n";
  std::string text = concat(judge.at("rule").get<std::string>(), " The classifier names ",
                            figure(100 * number(judge.at("classifier_accuracy")), 2),
                            " % of the test split; the anchors are ", judge.at("count").get<int>(),
                            " real images and as much noise.\n\n");
  Row head = {"", "bar", "real digits", "noise"};
  for (const Json& one : report.at("backbones"))
    for (const Json& run : one.at("runs"))
      head.push_back(
          concat(one.at("label").get<std::string>(),
                 one.at("runs").size() > 1 ? concat(", seed ", run.at("seed").get<int>()) : ""));
  std::vector<Row> rows;
  for (std::size_t i = 0; i < judge.at("marks").size(); ++i) {
    const Json& mark = judge.at("marks")[i];
    const int digits = mark.at("name") == "Frechet distance" ? 2 : 3;
    Row row = {mark.at("name"),
               concat(mark.at("at_least") == true ? "at least " : "at most ",
                      figure(mark.at("bar"), digits)),
               figure(mark.at("real"), digits), figure(mark.at("noise"), digits)};
    for (const Json& one : report.at("backbones"))
      for (const Json& run : one.at("runs"))
        row.push_back(run.at("marks").is_null()
                          ? "-"
                          : concat(figure(run.at("marks")[i].at("value"), digits), " (margin ",
                                   figure(run.at("marks")[i].at("margin"), 2), ")"));
    rows.push_back(row);
  }
  text += table(head, rows) + "A margin of 1 or more passes.\n\n";
  for (const Json& one : report.at("backbones"))
    for (const Json& run : one.at("runs"))
      text += concat("- ", one.at("label").get<std::string>(), ", seed ", run.at("seed").get<int>(),
                     ": ",
                     run.at("failed").is_null() ? text_of(run.at("sentence"))
                                                : "failed: " + text_of(run.at("failed")),
                     "\n");
  return text + "\n";
}

std::string nearest_text(const Json& report) {
  std::string text;
  for (const Json& one : report.at("backbones")) {
    const Json& n = one.at("nearest");
    if (n.is_null()) continue;
    text += concat(
        "- ", one.at("label").get<std::string>(), ": of ", n.at("count").get<int>(),
        " samples the nearest train image is at a median distance of ", figure(n.at("median"), 2),
        " (of as many test images: ", figure(n.at("median_real"), 2), "), the closest at ",
        figure(n.at("closest"), 2), " (", figure(n.at("closest_real"), 2), "); ",
        n.at("copies").get<int>() == 0 ? "none is a copy"
                                       : concat(n.at("copies").get<int>(), " may be copies"),
        ".\n");
  }
  return text.empty() ? "Not measured.\n\n" : text + "\n";
}

std::string latency_table(const Json& report) {
  Row head = {"batch"};
  std::vector<Row> rows;
  for (const Json& one : report.at("backbones")) {
    const std::string name = one.at("label");
    head.insert(head.end(), {name + ", ms", "images/s"});
    for (std::size_t i = 0; i < one.at("latency").size(); ++i) {
      const Json& row = one.at("latency")[i];
      if (rows.size() <= i) rows.push_back({text_of(row.at("batch"))});
      rows[i].insert(rows[i].end(), {figure(row.at("ms"), 2), figure(row.at("images_per_s"), 0)});
    }
  }
  return rows.empty() ? "Not measured.\n\n" : table(head, rows);
}

std::string steps_table(const Json& report) {
  Row head = {"solver", "steps", "evaluations"};
  std::vector<Row> rows;
  for (const Json& one : report.at("backbones")) {
    head.insert(head.end(), {one.at("label").get<std::string>() + ", Frechet", "recognised"});
    for (std::size_t i = 0; i < one.at("steps_quality").size(); ++i) {
      const Json& p = one.at("steps_quality")[i];
      if (rows.size() <= i)
        rows.push_back({p.at("solver"), text_of(p.at("steps")), text_of(p.at("evaluations"))});
      rows[i].insert(rows[i].end(),
                     {figure(p.at("frechet"), 2) + (p.at("passes") == true ? "" : " (fails)"),
                      figure(100 * number(p.at("recognised")), 1) + " %"});
    }
  }
  return rows.empty() ? "Not measured.\n\n" : table(head, rows);
}

std::string decision_text(const Json& decision) {
  std::string text =
      concat("**", decision.at("sentence").get<std::string>(), "** ",
             decision.at("certainty").get<std::string>(), "\n\nThe rule, fixed in advance:\n\n");
  int number_of_rule = 0;
  for (const Json& rule : decision.at("rule"))
    text += concat(++number_of_rule, ". ", rule.get<std::string>(), "\n");
  text += "\n";
  std::vector<Row> rows;
  for (const Json& c : decision.at("candidates"))
    rows.push_back({c.at("label"), c.at("passes") == true ? "passes" : "fails",
                    figure(c.at("loss"), 4), figure(c.at("step_ms"), 2),
                    figure(number(c.at("peak_memory_bytes")) * 1e-9, 2), c.at("reason"),
                    figure(100 * number(c.at("wins")), 1) + " %"});
  return text + table({"backbone", "bar", "loss", "step, ms", "memory, GB", "why",
                       "wins when seeds are resampled"},
                      rows);
}

std::string plot_link(const Json& report, const char* file) {
  for (const Json& plot : report.at("plots"))
    if (plot.at("file") == file)
      return concat("![", plot.at("title").get<std::string>(), "](", file, ")\n\n");
  return "";
}

std::string grid_links(const Json& report, const char* suffix, const char* what) {
  std::string text;
  for (const Json& one : report.at("backbones")) {
    if (one.at("grid").is_null()) continue;
    text += concat(one.at("label").get<std::string>(), ":\n\n![", what, "](grids/",
                   file_name_of(one.at("name")), suffix, ".png)\n\n");
  }
  return text;
}

}  // namespace

std::string report_markdown(const Json& r) {
  std::string text = concat("# ", r.at("title").get<std::string>(), "\n\n");
  std::string devices;
  for (const Json& device : r.at("devices"))
    devices += (devices.empty() ? "" : "; ") + text_of(device);
  text += concat("Preset `", text_of(r.at("preset")), "`, on ",
                 devices.empty() ? "an unknown device" : devices, ", ", text_of(r.at("date")),
                 ", fm ", text_of(r.at("version")),
                 ". [The page](report.html) has the same with a viewer of trajectories.\n\n");
  text += "## Decision\n\n" + decision_text(r.at("decision"));
  text += "## The study's table\n\n" + study_table(r);
  text +=
      "Loss is the mean squared error over the last epoch; the published figure fits half of it. "
      "Mean ± standard deviation over seeds.\n\n";
  if (r.at("preset") != "paper")
    text += concat("The models of preset `", text_of(r.at("preset")),
                   "` are smaller than the study's: what is measured here and what was published "
                   "differ in more than the machine.\n\n");
  text += "## Protocol\n\nThe same for every backbone.\n\n";
  std::vector<Row> protocol;
  for (const Json& pair : r.at("protocol"))
    protocol.push_back({text_of(pair[0]), text_of(pair[1])});
  text += table({"", ""}, protocol);
  text += "## Samples\n\n64 samples by each backbone from the same noise.\n\n" +
          grid_links(r, "", "64 samples");
  text += "## Digits or noise\n\n" + judge_text(r);
  text += "## Loss\n\n" + plot_link(r, "plots/loss.svg") + plot_link(r, "plots/loss_bins.svg") +
          bins_table(r);
  text += "## Cost\n\n" + plot_link(r, "plots/cost.svg") + more_figures(r);
  text +=
      "A step is the whole step: data, forward, backward, clipping and AdamW; time over the last "
      "100 steps. FLOPs are analytic: matrix products, attention, convolution and scan, a backward "
      "pass as two forward ones.\n\n";
  text += "## Sampling\n\n" + plot_link(r, "plots/latency.svg") + latency_table(r);
  text += "### Quality against steps and solvers\n\n" + plot_link(r, "plots/steps_quality.svg") +
          plot_link(r, "plots/solvers.svg") + steps_table(r);
  text +=
      "## Nearest train images\n\nAbove samples, below each the train image nearest to it.\n\n" +
      nearest_text(r) + grid_links(r, "-nearest", "samples and their nearest train images");
  if (!r.at("sweep").is_null())
    text += "## Tokens\n\n" + plot_link(r, "plots/sweep.svg") + sweep_markdown(r.at("sweep"));
  text += "## Published and measured\n\nWhat the study says: " +
          text_of(r.at("published").at("decision")) + "\n\n";
  std::vector<Row> rows;
  for (const Json& d : r.at("disagreements"))
    rows.push_back({d.at("claim"), d.at("published"), d.at("measured"), d.at("note")});
  return text + table({"", "published", "measured", ""}, rows);
}

std::string sweep_markdown(const Json& sweep) {
  std::vector<Row> rows;
  for (const Json& row : sweep.at("rows"))
    rows.push_back({text_of(row.at("tokens")), label_of(row.at("backbone")),
                    concat(row.at("image").get<int>(), " px, patch ", row.at("patch").get<int>()),
                    text_of(row.at("batch")), figure(row.at("step_ms"), 2),
                    figure(row.at("us_per_image"), 1), figure(row.at("latency_ms"), 2),
                    row.at("failed").is_null()
                        ? figure(number(row.at("peak_memory_bytes")) * 1e-9, 2)
                        : text_of(row.at("failed"))});
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return std::stoi(a[0]) < std::stoi(b[0]); });
  std::string text =
      table({"tokens", "backbone", "image", "batch", "step, ms", "training, µs an image",
             "one image by ten Euler steps, ms", "peak memory, GB"},
            rows);
  for (const Json& sentence : sweep.at("sentences"))
    text += "- " + sentence.get<std::string>() + "\n";
  return text + "\n";
}

}  // namespace fm
