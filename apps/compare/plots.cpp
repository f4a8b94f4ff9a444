#include "apps/compare/plots.h"

#include <algorithm>
#include <cmath>

#include "apps/compare/compare_config.h"
#include "apps/compare/figures.h"
#include "apps/compare/svg.h"

namespace fm {
namespace {

using Points = std::vector<std::pair<double, double>>;

Json plot(const char* title, const char* file, const std::vector<Drawing>& drawings) {
  return {{"title", title}, {"svg", svg_file(drawings)}, {"file", std::string("plots/") + file}};
}

Points points_of(const Json& x, const Json& y) {
  Points points;
  for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i)
    points.emplace_back(number(x[i]), number(y[i]));
  return points;
}

std::string label(const Json& backbone) {
  return backbone.at("label");
}

// Loss against epochs, every seed faint behind the mean.
Json loss_plot(const Json& backbones) {
  LineChart chart{.title = "Training loss",
                  .x = "epochs",
                  .y = "mean squared error",
                  .log_y = true,
                  .lines = {},
                  .levels = {},
                  .x_ticks = {}};
  int colour = 0;
  double shown_most = 0;  // the first steps' losses would press all others to the floor
  for (const Json& one : backbones) {
    for (const Json& run : one.at("runs"))
      if (one.at("runs").size() > 1)
        chart.lines.push_back({"", colour,
                               points_of(run.at("curve").at("epochs"), run.at("curve").at("loss")),
                               true});
    const Points mean = points_of(one.at("curve").at("epochs"), one.at("curve").at("loss"));
    if (!mean.empty()) shown_most = std::max(shown_most, 4 * mean.back().second);
    chart.lines.push_back({label(one), colour++, mean});
  }
  chart.y_most = shown_most;
  return plot("Training loss", "loss.svg", {draw(chart, 720, 380)});
}

BarChart bars(const Json& backbones, const std::string& title, const char* field, double scale,
              int digits, const char* unit, const char* marker = nullptr) {
  BarChart chart{title, {}};
  int colour = 0;
  for (const Json& one : backbones) {
    Bar bar{.name = label(one), .colour = colour++, .text = "failed"};
    bar.value = std::nan("");
    if (const Json& stat = one.at(field); !stat.is_null()) {
      bar.value = number(stat.at("mean")) * scale;
      if (!stat.at("sd").is_null()) bar.spread = number(stat.at("sd")) * scale;
      if (marker && !one.at(marker).is_null())
        bar.marker = number(one.at(marker).at("mean")) * scale;
      bar.text = figure(bar.value, digits) + unit;
    }
    chart.bars.push_back(bar);
  }
  return chart;
}

Json cost_plot(const Json& backbones) {
  return plot("Time and memory of a training step", "cost.svg",
              {draw(bars(backbones, "Training step, ms (tick: 90th percentile)", "step_ms", 1, 2,
                         " ms", "step_p90_ms"),
                    480),
               draw(bars(backbones, "Peak memory, MB", "peak_memory_bytes", 1e-6, 0, " MB"), 480)});
}

Json bins_plot(const Json& backbones) {
  LineChart chart{.title = "Loss along t (t = 0 noise, t = 1 data)",
                  .x = "t",
                  .y = "mean squared error",
                  .lines = {},
                  .levels = {},
                  .x_ticks = {}};
  int colour = 0;
  for (const Json& one : backbones) {
    for (const bool test : {true, false}) {
      const Json& bins = one.at("loss_bins").at(test ? "test" : "train");
      Points points;
      for (std::size_t i = 0; i < bins.size(); ++i)
        points.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(bins.size()),
                            number(bins[i]));
      chart.lines.push_back(
          {label(one) + (test ? ", test" : ", train"), colour, points, false, !test});
    }
    ++colour;
  }
  return plot("Loss in ten bins of t", "loss_bins.svg", {draw(chart, 720, 380)});
}

std::vector<Level> anchors(const Json& judge) {
  if (judge.is_null()) return {};
  std::vector<Level> levels = {{"real digits", number(judge.at("frechet_real"))},
                               {"noise", number(judge.at("frechet_noise"))}};
  for (const Json& mark : judge.at("marks"))
    if (mark.at("name") == "Frechet distance") levels.push_back({"bar", number(mark.at("bar"))});
  return levels;
}

LineChart frechet_chart(const Json& judge, const std::string& title, const char* x,
                        const std::vector<double>& ticks) {
  return {.title = title,
          .x = x,
          .y = "Frechet distance",
          .log_x = true,
          .log_y = true,
          .lines = {},
          .levels = anchors(judge),
          .x_ticks = ticks};
}

// Frechet distance against Euler steps, all backbones.
Json steps_plot(const Json& backbones, const Json& judge) {
  LineChart chart =
      frechet_chart(judge, "Sample quality against Euler steps", "steps", {1, 2, 5, 10, 20, 50});
  int colour = 0;
  for (const Json& one : backbones) {
    Points points;
    for (const Json& point : one.at("steps_quality"))
      if (point.at("solver") == "euler")
        points.emplace_back(number(point.at("steps")), number(point.at("frechet")));
    if (!points.empty()) chart.lines.push_back({label(one), colour, points});
    ++colour;
  }
  if (chart.lines.empty()) return nullptr;
  return plot("Sample quality against steps", "steps_quality.svg", {draw(chart, 720, 380)});
}

// The same against what a sample costs, by solver: a chart a backbone.
Json solvers_plot(const Json& backbones, const Json& judge) {
  std::vector<Drawing> drawings;
  for (const Json& one : backbones) {
    LineChart chart = frechet_chart(judge, label(one), "velocity evaluations a sample",
                                    {1, 2, 5, 10, 20, 50, 100, 200});
    for (const Json& point : one.at("steps_quality")) {
      const std::string solver = point.at("solver");
      if (chart.lines.empty() || chart.lines.back().name != solver)
        chart.lines.push_back({solver, static_cast<int>(chart.lines.size()), {}});
      chart.lines.back().points.emplace_back(number(point.at("evaluations")),
                                             number(point.at("frechet")));
    }
    if (!chart.lines.empty()) drawings.push_back(draw(chart, 340, 320));
  }
  if (drawings.empty()) return nullptr;
  return plot("Sample quality against solver and cost", "solvers.svg", drawings);
}

Json latency_plot(const Json& backbones) {
  LineChart time{.title = "Time to draw a batch",
                 .x = "batch",
                 .y = "ms",
                 .log_x = true,
                 .log_y = true,
                 .lines = {},
                 .levels = {},
                 .x_ticks = {}};
  LineChart rate = time;
  rate.title = "What batching buys", rate.y = "images a second";
  int colour = 0;
  for (const Json& one : backbones) {
    Points ms, images;
    for (const Json& row : one.at("latency")) {
      ms.emplace_back(number(row.at("batch")), number(row.at("ms")));
      images.emplace_back(number(row.at("batch")), number(row.at("images_per_s")));
      if (colour == 0) time.x_ticks.push_back(ms.back().first);
    }
    time.lines.push_back({label(one), colour, ms});
    rate.lines.push_back({label(one), colour++, images});
  }
  rate.x_ticks = time.x_ticks;
  if (time.x_ticks.empty()) return nullptr;
  return plot("Sampling time against batch", "latency.svg", {draw(time), draw(rate)});
}

}  // namespace

Json report_plots(const Json& report) {
  const Json& backbones = report.at("backbones");
  Json plots = {loss_plot(backbones), cost_plot(backbones), bins_plot(backbones)};
  const Json& judge = report.at("judge");
  for (const Json& more :
       {steps_plot(backbones, judge), solvers_plot(backbones, judge), latency_plot(backbones)})
    if (!more.is_null()) plots.push_back(more);
  if (!report.at("sweep").is_null()) plots.push_back(sweep_plot(report.at("sweep")));
  return plots;
}

Json sweep_plot(const Json& sweep) {
  const auto chart = [&](const std::string& title, const char* y, const char* field, double scale) {
    LineChart c{.title = title,
                .x = "tokens",
                .y = y,
                .log_x = true,
                .log_y = true,
                .lines = {},
                .levels = {},
                .x_ticks = {}};
    for (const Json& row : sweep.at("rows")) {
      const std::string name = label_of(row.at("backbone"));
      if (c.lines.empty() || c.lines.back().name != name)
        c.lines.push_back({name, static_cast<int>(c.lines.size()), {}});
      c.lines.back().points.emplace_back(number(row.at("tokens")), number(row.at(field)) * scale);
      if (c.lines.size() == 1) c.x_ticks.push_back(number(row.at("tokens")));
    }
    return draw(c, 440, 340);
  };
  return plot("Cost against the number of tokens", "sweep.svg",
              {chart("Training, an image", "µs", "us_per_image", 1),
               chart("Sampling one image", "ms", "latency_ms", 1),
               chart("Peak memory of training, an image", "MB", "bytes_per_image", 1e-6)});
}

}  // namespace fm
