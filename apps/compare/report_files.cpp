#include "apps/compare/report_files.h"

#include "apps/compare/compare_config.h"
#include "apps/compare/plots.h"
#include "apps/compare/report_data.h"
#include "apps/compare/report_markdown.h"
#include "apps/viewer/report_page.h"
#include "engine/io/atomic_file.h"

namespace fm {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPictureLimit = 1 << 26;

// The first judged run's pictures, under the backbone's name.
void copy_pictures(const fs::path& folder, const Json& backbone) {
  const std::string name = file_name_of(backbone.at("name"));
  for (const Json& run : backbone.at("runs")) {
    if (!run.at("failed").is_null()) continue;
    const fs::path from = folder / run.at("folder").get<std::string>() / "evaluation";
    for (const auto& [file, suffix] : {std::pair{"grid.png", ""}, {"nearest.png", "-nearest"}}) {
      if (!fs::is_regular_file(from / file)) continue;
      const auto bytes = read_file(from / file, kPictureLimit);
      write_file(folder / "grids" / (name + suffix + ".png"),
                 {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    }
    return;
  }
}

}  // namespace

WrittenReport write_report(const fs::path& folder) {
  WrittenReport written{folder, gather_report(folder)};
  Json& report = written.report;
  report["plots"] = report_plots(report);
  for (const char* part : {"plots", "grids"}) fs::create_directories(folder / part);
  for (const Json& plot : report["plots"])
    write_file(folder / plot.at("file").get<std::string>(), plot.at("svg").get<std::string>());
  for (const Json& backbone : report["backbones"]) copy_pictures(folder, backbone);
  write_file(folder / "report.json", report.dump() + "\n");
  write_file(folder / "report.md", report_markdown(report));
  write_report_page(folder / "report.html", report);
  return written;
}

void print_report(const WrittenReport& written, std::ostream& out) {
  const Json& decision = written.report.at("decision");
  for (const Json& backbone : written.report.at("backbones")) {
    const fs::path grid = written.folder / "grids" / (file_name_of(backbone.at("name")) + ".png");
    if (fs::exists(grid))
      out << backbone.at("label").get<std::string>() << ": " << grid.string() << "\n";
  }
  out << "report: " << (written.folder / "report.md").string() << "\n";
  if (fs::exists(written.folder / "report.html"))
    out << "page: " << (written.folder / "report.html").string() << "\n";
  out << "decision: " << decision.at("sentence").get<std::string>() << " "
      << decision.at("certainty").get<std::string>() << "\n";
}

}  // namespace fm
