// Charts as SVG text: what a report shows beside its tables.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fm {

struct Line {
  std::string name;
  int colour = 0;                                 // a backbone's number: the same in all charts
  std::vector<std::pair<double, double>> points;  // those that are not finite are left out
  bool faint = false;                             // one seed of several: thin, without a name
  bool dashed = false;
};

// A level that lines are held against, with its name at the left edge.
struct Level {
  std::string name;
  double y;
};

struct LineChart {
  std::string title, x, y;  // what the axes show
  bool log_x = false, log_y = false;
  std::vector<Line> lines;
  std::vector<Level> levels;
  // Ticks of the x axis; empty: chosen.
  std::vector<double> x_ticks;
  double y_most = 0;  // values beyond it are cut off; 0: none
};

struct Bar {
  std::string name;
  int colour = 0;
  double value = 0;
  double spread = 0;  // half the length of the whisker
  double marker = 0;  // a tick beyond the bar, as of a 90th percentile; 0: none
  std::string text;   // at the bar's end
};
struct BarChart {
  std::string title;
  std::vector<Bar> bars;
};

// One or more charts side by side, as a whole SVG file of this many pixels each.
struct Drawing {
  std::string content;
  double width = 0, height = 0;
};
Drawing draw(const LineChart& chart, double width = 460, double height = 320);
Drawing draw(const BarChart& chart, double width = 460);
std::string svg_file(const std::vector<Drawing>& side_by_side);

}  // namespace fm
