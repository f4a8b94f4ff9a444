#include "apps/compare/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "apps/markup.h"

namespace fm {
namespace {

// Told apart by colour-blind eyes, too (Okabe and Ito 2008).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#b8860b", "#56b4e9", "#555555", "#8b4513"};
constexpr const char* kInk = "#24292f";
constexpr const char* kSoft = "#6e7781";
constexpr const char* kGridLine = "#e4e7eb";
constexpr double kLegendRow = 17, kCharacter = 6.9;  // pixels of a character at font size 12

const char* colour_of(int number) {
  return kColours[static_cast<std::size_t>(number) % std::size(kColours)];
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

// A tick's value, as short as it is exact.
std::string tick_text(double value) {
  char text[32];
  if (value == 0) return "0";  // not "-0"
  if (std::fabs(value) >= 1e5 || std::fabs(value) < 1e-3)
    std::snprintf(text, sizeof text, "%.0e", value);
  else std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string text_at(double x, double y, const std::string& text, const char* anchor = "start",
                    const std::string& more = "") {
  return "<text x=\"" + number_text(x) + "\" y=\"" + number_text(y) + "\" text-anchor=\"" + anchor +
         "\" " + more + ">" + markup_text(text) + "</text>\n";
}

std::string stroke(double x1, double y1, double x2, double y2, const std::string& style) {
  return "<line x1=\"" + number_text(x1) + "\" y1=\"" + number_text(y1) + "\" x2=\"" +
         number_text(x2) + "\" y2=\"" + number_text(y2) + "\" " + style + "/>\n";
}

std::string attribute(const char* name, const std::string& value) {
  return std::string(name) + "=\"" + value + "\" ";
}

// From values to pixels.
struct Axis {
  bool log;
  double least, most, from, to;
  double operator()(double value) const {
    const double a = log ? std::log(least) : least, b = log ? std::log(most) : most;
    return from + (to - from) * ((log ? std::log(value) : value) - a) / (b - a);
  }
};

// About five round values, all of them within [least, most].
std::vector<double> round_ticks(double least, double most) {
  const double rough = (most - least) / 5, power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 2.5, 5.0})
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  std::vector<double> ticks;
  for (double k = std::ceil(least / step - 1e-9); k * step <= most + 1e-9 * step; ++k)
    ticks.push_back(k * step);
  return ticks;
}

// Whole powers of ten where there are many, with 2 and 5 between them where not; less than half a
// power is as good as even.
std::vector<double> log_ticks(double least, double most) {
  if (most / least < 4) return round_ticks(least, most);
  std::vector<double> ticks;
  const bool few = most / least > 300;
  for (double power = std::pow(10, std::floor(std::log10(least))); power <= most; power *= 10)
    for (const double factor : {1.0, 2.0, 5.0})
      if ((factor == 1 || !few) && factor * power >= least * (1 - 1e-9) &&
          factor * power <= most * (1 + 1e-9))
        ticks.push_back(factor * power);
  return ticks;
}

struct Range {
  double least = std::numeric_limits<double>::infinity(), most = -least;
  void take(double value) { least = std::min(least, value), most = std::max(most, value); }
};

bool drawable(const LineChart& chart, const std::pair<double, double>& p) {
  return std::isfinite(p.first) && std::isfinite(p.second) && (!chart.log_x || p.first > 0) &&
         (!chart.log_y || p.second > 0);
}

// The ends of an axis a little beyond its values.
Axis axis_for(Range range, bool log, double from, double to, bool from_zero) {
  if (!(range.least <= range.most)) range = {log ? 1.0 : 0.0, log ? 10.0 : 1.0};
  if (log) {
    const double room = std::pow(range.most / range.least, 0.04) * 1.02;
    return {true, range.least / room, range.most * room, from, to};
  }
  if (from_zero) range.least = std::min(range.least, 0.0);
  double room = 0.05 * (range.most - range.least);
  if (room == 0) room = range.most == 0 ? 1 : 0.1 * std::fabs(range.most);
  return {false, range.least == 0 ? 0 : range.least - room, range.most + room, from, to};
}

std::string legend(const std::vector<const Line*>& named, double left, double width, double& y) {
  std::string content;
  double x = left;
  for (const Line* line : named) {
    const double wide = 30 + kCharacter * static_cast<double>(line->name.size()) + 12;
    if (x > left && x + wide > left + width) x = left, y += kLegendRow;
    content +=
        stroke(x, y - 4, x + 22, y - 4,
               attribute("stroke", colour_of(line->colour)) + attribute("stroke-width", "2.5") +
                   (line->dashed ? attribute("stroke-dasharray", "5 3") : ""));
    content += text_at(x + 28, y, line->name, "start", attribute("fill", kInk));
    x += wide;
  }
  y += kLegendRow;
  return content;
}

}  // namespace

Drawing draw(const LineChart& chart, double width, double height) {
  std::string content = text_at(
      12, 22, chart.title, "start",
      attribute("fill", kInk) + attribute("font-size", "14") + attribute("font-weight", "600"));
  std::vector<const Line*> named;
  Range xs, ys;
  for (const Line& line : chart.lines) {
    if (!line.faint && !line.name.empty()) named.push_back(&line);
    for (const auto& p : line.points)
      if (drawable(chart, p)) xs.take(p.first), ys.take(p.second);
  }
  for (const Level& level : chart.levels)
    if (std::isfinite(level.y) && (!chart.log_y || level.y > 0)) ys.take(level.y);
  if (chart.y_most > 0) ys.most = std::min(ys.most, chart.y_most);
  double top = 44;
  content += legend(named, 12, width - 24, top);
  const double left = 58, right = width - 16, bottom = height - 44;
  const Axis x = axis_for(xs, chart.log_x, left, right, false);
  const Axis y = axis_for(ys, chart.log_y, bottom, top - 6, false);

  std::vector<double> x_ticks = chart.x_ticks;
  if (x_ticks.empty())
    x_ticks = chart.log_x ? log_ticks(x.least, x.most) : round_ticks(x.least, x.most);
  double free_from = 0;  // labels must not run into one another
  for (const double tick : x_ticks) {
    if (tick < x.least || tick > x.most) continue;
    content += stroke(x(tick), y.from, x(tick), y.to, attribute("stroke", kGridLine));
    const std::string label = tick_text(tick);
    const double half = kCharacter * static_cast<double>(label.size()) / 2;
    if (x(tick) - half < free_from) continue;
    free_from = x(tick) + half + 4;
    content += text_at(x(tick), bottom + 16, label, "middle", attribute("fill", kSoft));
  }
  for (const double tick :
       chart.log_y ? log_ticks(y.least, y.most) : round_ticks(y.least, y.most)) {
    content += stroke(x.from, y(tick), x.to, y(tick), attribute("stroke", kGridLine));
    content += text_at(left - 6, y(tick) + 4, tick_text(tick), "end", attribute("fill", kSoft));
  }
  content += stroke(left, bottom, right, bottom, attribute("stroke", kSoft));
  content += text_at((left + right) / 2, height - 10, chart.x, "middle", attribute("fill", kInk));
  const double middle = (top + bottom) / 2;
  content += text_at(14, middle, chart.y, "middle",
                     attribute("fill", kInk) +
                         attribute("transform", "rotate(-90 14 " + number_text(middle) + ")"));
  for (const Level& level : chart.levels) {
    if (!std::isfinite(level.y) || level.y > y.most || level.y < y.least) continue;
    content += stroke(left, y(level.y), right, y(level.y),
                      attribute("stroke", kSoft) + attribute("stroke-dasharray", "2 3"));
    content += text_at(left + 4, y(level.y) - 4, level.name, "start",
                       attribute("fill", kSoft) + attribute("font-size", "11"));
  }
  for (const bool faint : {true, false}) {
    for (const Line& line : chart.lines) {
      if (line.faint != faint) continue;
      std::string path;
      for (const auto& p : line.points)
        if (drawable(chart, p))
          path += number_text(x(p.first)) + "," + number_text(y(std::min(p.second, y.most))) + " ";
      const std::string colour = colour_of(line.colour);
      content += "<polyline fill=\"none\" points=\"" + path + "\" " + attribute("stroke", colour) +
                 attribute("stroke-width", faint ? "1" : "2.2") +
                 (faint ? attribute("stroke-opacity", "0.35") : "") +
                 (line.dashed ? attribute("stroke-dasharray", "5 3") : "") +
                 "stroke-linejoin=\"round\"/>\n";
      if (faint || line.points.size() > 14) continue;
      for (const auto& p : line.points)
        if (drawable(chart, p) && p.second <= y.most)
          content += "<circle cx=\"" + number_text(x(p.first)) + "\" cy=\"" +
                     number_text(y(p.second)) + "\" r=\"3\" fill=\"" + colour + "\"/>\n";
    }
  }
  return {content, width, height};
}

Drawing draw(const BarChart& chart, double width) {
  constexpr double kRow = 34, kBar = 20;
  std::string content = text_at(
      12, 22, chart.title, "start",
      attribute("fill", kInk) + attribute("font-size", "14") + attribute("font-weight", "600"));
  double most = 0, name_room = 0, text_room = 0;
  for (const Bar& bar : chart.bars) {
    if (std::isfinite(bar.value)) most = std::max({most, bar.value + bar.spread, bar.marker});
    name_room = std::max(name_room, kCharacter * static_cast<double>(bar.name.size()));
    text_room = std::max(text_room, kCharacter * static_cast<double>(bar.text.size()));
  }
  const double left = 12 + name_room + 12, right = width - 16 - text_room - 8;
  const auto x = [&](double value) {
    return left + (right - left) * value / (most > 0 ? most : 1);
  };
  double y = 40;
  for (const Bar& bar : chart.bars) {
    const double middle = y + kBar / 2;
    content += text_at(left - 10, middle + 4, bar.name, "end", attribute("fill", kInk));
    if (std::isfinite(bar.value)) {
      content += "<rect x=\"" + number_text(left) + "\" y=\"" + number_text(y) + "\" width=\"" +
                 number_text(std::max(x(bar.value) - left, 1.0)) + "\" height=\"" +
                 number_text(kBar) + "\" rx=\"2\" fill=\"" + colour_of(bar.colour) + "\"/>\n";
      const std::string ink = attribute("stroke", kInk) + attribute("stroke-width", "1.5");
      if (bar.spread > 0)
        content += stroke(x(std::max(bar.value - bar.spread, 0.0)), middle,
                          x(bar.value + bar.spread), middle, ink);
      if (bar.marker > 0) content += stroke(x(bar.marker), y - 2, x(bar.marker), y + kBar + 2, ink);
    }
    const double end = std::max({bar.value + bar.spread, bar.marker, 0.0});
    content += text_at((std::isfinite(end) ? x(end) : left) + 8, middle + 4, bar.text, "start",
                       attribute("fill", kInk));
    y += kRow;
  }
  return {content, width, y + 4};
}

std::string svg_file(const std::vector<Drawing>& drawings) {
  double width = 0, height = 0;
  for (const Drawing& d : drawings) width += d.width, height = std::max(height, d.height);
  const std::string w = number_text(width), h = number_text(height);
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + w + " " + h +
                    "\" width=\"" + w + "\" height=\"" + h +
                    "\" font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" "
                    "font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  double left = 0;
  for (const Drawing& d : drawings) {
    svg += "<g transform=\"translate(" + number_text(left) + " 0)\">\n" + d.content + "</g>\n";
    left += d.width;
  }
  return svg + "</svg>\n";
}

}  // namespace fm
