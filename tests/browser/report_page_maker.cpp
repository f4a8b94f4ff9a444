// report_page_maker REPORT.json PAGE.html: the report's page of any data, for the browser's test.
#include <cstdio>

#include "apps/viewer/report_page.h"
#include "engine/io/atomic_file.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    const auto bytes = fm::read_file(argv[1], 1 << 26);
    fm::write_report_page(argv[2], fm::Json::parse(bytes.begin(), bytes.end()));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
