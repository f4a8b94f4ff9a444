// What fmbench prints and writes: a table on stdout, JSON lines, ratios to a baseline.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "engine/io/fields.h"

namespace fm {

// A column of the table: a row's field, text as it is, numbers times `scale` with `digits`.
struct Column {
  const char* title;
  const char* field;
  int width;
  double scale = 1;
  int digits = 0;
};

struct ReportOptions {
  std::string json;      // file that rows are appended to; empty: none
  std::string baseline;  // such a file of an earlier run; empty: none
  double threshold = 1.05;
  bool markdown = false;
};

class Report {
 public:
  // `machine`: fields that every row has in the JSON lines. Reads the baseline, throws Fault::usage
  // or Fault::data where options are wrong or the file is not of fmbench.
  Report(const ReportOptions& options, std::vector<Column> columns, Json machine);

  // One more field of every row's.
  void every_row(const char* field, const Json& value) { machine_[field] = value; }
  // A row has "name", which finds it in a baseline, and either "median_ms" or "failure".
  void row(Json row);
  // Prints what there is to say of failures and the baseline; the exit code: 0, or 1 where a check
  // failed or a time is above the threshold.
  int finish();

 private:
  void append(const std::string& text) const;  // to the JSON file
  void print(const Json& row, const std::string& ratio);

  ReportOptions options_;
  std::vector<Column> columns_;
  Json machine_;
  std::map<std::string, Json> baseline_;  // the newest row of each name
  bool headed_ = false;
  std::size_t compared_ = 0, slower_ = 0, failed_ = 0;
};

void put_times(Json& row, const Times& times);

}  // namespace fm
