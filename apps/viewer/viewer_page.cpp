#include "apps/viewer/viewer_page.h"

#include "apps/viewer/page.h"
#include "engine/io/atomic_file.h"

namespace fm {

std::size_t write_viewer_page(const std::filesystem::path& path, const std::string& title,
                              const Json& viewer) {
  const std::string page = make_page("viewer.html", title, viewer);
  write_file(path, page);
  return page.size();
}

}  // namespace fm
