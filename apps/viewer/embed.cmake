# Turns the files of a folder into a C++ source: cmake -DFOLDER=... -DOUTPUT=... -P embed.cmake
# The source defines fm::page_source (apps/viewer/page.h).
file(GLOB files ${FOLDER}/*)
set(cases "")
foreach(file ${files})
  file(READ ${file} text)
  if(text MATCHES "\\)page\"")
    message(FATAL_ERROR "${file} holds )page\", which ends the raw string it is put into")
  endif()
  get_filename_component(name ${file} NAME)
  string(APPEND cases "  if (name == \"${name}\")\n    return R\"page(${text})page\";\n")
endforeach()
file(WRITE ${OUTPUT} "// Made by apps/viewer/embed.cmake of the files in apps/viewer/page.
#include \"apps/viewer/page.h\"

namespace fm {

std::string_view page_source(std::string_view name) {
${cases}  return {};
}

}  // namespace fm
")
