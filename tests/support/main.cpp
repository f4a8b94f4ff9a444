// The test programs' main: doctest's, and an exit code that ctest reports as skipped where a GPU
// test finds no GPU.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>

#include "kernels/base/queue.h"

namespace {
constexpr int kSkipped = 77;
}

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--test-suite=gpu") == 0 && fm::cuda_device_count() == 0) {
      std::puts("skipped: no CUDA device");
      return kSkipped;
    }
  }
  doctest::Context context(argc, argv);
  return context.run();
}
