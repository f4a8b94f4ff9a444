#!/usr/bin/env bash
# Builds everything and runs every test.
#
#   bash tools/test.sh                 all
#   bash tools/test.sh -L gpu          every argument goes to ctest: -L cpu, -R swiglu, -j 1, --rerun-failed, ...
#
# The pages are tested in Chromium, which is installed where apt has it; elsewhere those tests say "skipped".
# GPU tests are built and run where a GPU and nvcc are, and say "skipped" where the GPU is taken away.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_packages
install_browser
choose_build
echo "building build/$BUILD (minutes the first time)"
build_targets "$BUILD" all
ctest --test-dir "$root/build/$BUILD" --output-on-failure --parallel "${CTEST_PARALLEL_LEVEL:-$(nproc)}" "$@"
