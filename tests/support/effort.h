// How much a GPU test does. FM_TEST_EFFORT=small keeps every path and drops what only repeats it:
// under compute-sanitizer's racecheck a kernel runs some hundred times slower.
#pragma once

#include <cstdlib>
#include <cstring>

namespace fm::test {

inline bool small_effort() {
  const char* effort = std::getenv("FM_TEST_EFFORT");
  return effort && std::strcmp(effort, "small") == 0;
}

}  // namespace fm::test
