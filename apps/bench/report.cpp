#include "apps/bench/report.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "kernels/base/check.h"

namespace fm {
namespace {

std::string text_of(const Json& row, const Column& column) {
  const auto found = row.find(column.field);
  if (found == row.end() || found->is_null()) return "-";
  if (found->is_string()) return found->get<std::string>();
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", column.digits, found->get<double>() * column.scale);
  return text;
}

std::map<std::string, Json> read_baseline(const std::string& path) {
  std::map<std::string, Json> rows;
  std::ifstream in(path);
  if (!in) fail(Fault::data, "[bench] the baseline ", path, " cannot be read");
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("name") || !row["name"].is_string())
      fail(Fault::data, "[bench] the baseline must hold JSON lines of fmbench --json, got ",
           line.substr(0, 60), " (", path, ")");
    if (row.contains("median_ms") && row["median_ms"].is_number())
      rows[row["name"].get<std::string>()] = row;
  }
  if (rows.empty()) fail(Fault::data, "[bench] the baseline ", path, " holds no time");
  return rows;
}

}  // namespace

void put_times(Json& row, const Times& times) {
  row["median_ms"] = times.median_ms;
  row["p10_ms"] = times.p10_ms;
  row["p90_ms"] = times.p90_ms;
  row["runs"] = times.runs;
}

Report::Report(const ReportOptions& options, std::vector<Column> columns, Json machine)
    : options_(options), columns_(std::move(columns)), machine_(std::move(machine)) {
  FM_CHECK(options_.threshold > 0 && std::isfinite(options_.threshold),
           "[bench] threshold must be a ratio above 0, got ", options_.threshold);
  if (!options_.json.empty()) append("");  // before minutes of work that could not be kept
  if (options_.baseline.empty()) return;
  baseline_ = read_baseline(options_.baseline);
  const std::string before = baseline_.begin()->second.value("device", "");
  if (before != machine_.value("device", ""))
    std::fprintf(stderr, "the baseline was measured on another machine: %s\n", before.c_str());
}

void Report::row(Json row) {
  if (!options_.json.empty()) {
    Json line = row;
    line.update(machine_);
    append(line.dump() + "\n");
  }
  std::string ratio = "-";
  if (row.contains("failure")) {
    ++failed_;
  } else if (const auto found = baseline_.find(row["name"].get<std::string>());
             found != baseline_.end()) {
    const double times = row["median_ms"].get<double>() / found->second["median_ms"].get<double>();
    const bool slower = times > options_.threshold;
    ++compared_;
    slower_ += slower;
    char text[32];
    std::snprintf(text, sizeof text, "%.3f%s", times, slower ? " SLOWER" : "");
    ratio = text;
  }
  print(row, ratio);
}

void Report::append(const std::string& text) const {
  std::ofstream out(options_.json, std::ios::app);
  out << text;
  out.close();
  if (!out) fail(Fault::runtime, "[bench] ", options_.json, " could not be written");
}

void Report::print(const Json& row, const std::string& ratio) {
  std::vector<Column> columns = columns_;
  if (!baseline_.empty()) columns.push_back({"of baseline", "", 11});
  const char* const between = options_.markdown ? " | " : "  ";
  const auto line = [&](auto&& text) {
    std::string all = options_.markdown ? "| " : "";
    for (std::size_t i = 0; i < columns.size(); ++i) {
      std::string cell = text(columns[i]);
      const auto width = static_cast<std::size_t>(std::abs(columns[i].width));
      if (!options_.markdown && cell.size() < width)
        cell.insert(columns[i].width < 0 ? cell.size() : 0, width - cell.size(), ' ');
      all += (i ? between : "") + cell;
    }
    std::cout << all << (options_.markdown ? " |" : "") << "\n";
  };
  if (!headed_) {
    line([](const Column& column) { return std::string(column.title); });
    if (options_.markdown)
      line([](const Column& column) { return std::string(column.width < 0 ? "---" : "---:"); });
    headed_ = true;
  }
  if (row.contains("failure")) {
    const std::string wrong = "FAILED: " + row["failure"].get<std::string>();
    std::cout << (options_.markdown ? "| " : "") << row["name"].get<std::string>() << between
              << wrong << (options_.markdown ? " |" : "") << std::endl;
    return;
  }
  line([&](const Column& column) { return column.field[0] ? text_of(row, column) : ratio; });
  std::cout.flush();  // a row takes a while: whoever looks wants it now
}

int Report::finish() {
  if (failed_)
    std::fprintf(stderr, "%zu checks failed: those results are wrong and have no time\n", failed_);
  if (!baseline_.empty()) {
    if (compared_ == 0)
      fail(Fault::data, "[bench] no row of this run is in the baseline ", options_.baseline);
    std::fprintf(stderr, "%zu rows compared with %s, %zu above %g times its time\n", compared_,
                 options_.baseline.c_str(), slower_, options_.threshold);
  }
  return failed_ || slower_ ? 1 : 0;
}

}  // namespace fm
