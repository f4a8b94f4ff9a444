// The report of a comparison: gathered from its run folders, written as files.
#pragma once

#include <filesystem>
#include <ostream>

#include "engine/io/fields.h"

namespace fm {

struct WrittenReport {
  std::filesystem::path folder;
  Json report;
};

// Reads every evaluated run in folder/runs (no weights, nothing is trained; runs copied there from
// other machines count) and, where there is one, folder/sweep.json; writes report.json, report.md,
// report.html, plots/*.svg and grids/*.png. Throws Fault::data where there is no evaluated run.
WrittenReport write_report(const std::filesystem::path& folder);

// The decision in one sentence, how sure it is, and the paths of what was written.
void print_report(const WrittenReport& written, std::ostream& out);

}  // namespace fm
