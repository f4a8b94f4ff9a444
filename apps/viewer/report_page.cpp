#include "apps/viewer/report_page.h"

#include "apps/viewer/page.h"
#include "engine/io/atomic_file.h"

namespace fm {

void write_report_page(const std::filesystem::path& path, const Json& report) {
  write_file(path, make_page("report.html", report.value("title", "Comparison"), report));
}

}  // namespace fm
