#!/usr/bin/env bash
# Everything that needs a GPU, for a machine that has one: builds build/cuda-release, runs the GPU tests and, where asked,
# the sanitizers, and leaves the logs in a folder.
#
#   bash tools/gpu_check.sh FOLDER               machine.txt, build.log, tests.log
#   bash tools/gpu_check.sh FOLDER --sanitize    and sanitize.log; further arguments go to tools/sanitize.sh
#
# It installs nothing: the packages come from tools/setup.sh or, on a machine without them, from a folder that
# CMAKE_PREFIX_PATH and PKG_CONFIG_PATH name. All steps run even where one fails; exits 1 if any did.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ $# -eq 0 ] || [[ $1 == -* ]]; then
  die "usage: bash tools/gpu_check.sh FOLDER [--sanitize [arguments of tools/sanitize.sh]]"
fi
mkdir -p "$1"
logs=$(cd "$1" && pwd)
shift
sanitize=no
if [ $# -gt 0 ]; then
  [ "$1" = --sanitize ] || die "unknown argument $1: after FOLDER there is only --sanitize."
  sanitize=yes
  shift
fi
gpu_present || die "no GPU here (nvidia-smi shows none)."
find_nvcc || die "no nvcc >= $nvcc_wanted found (PATH, /usr/local/cuda*)."

{
  git -C "$root" describe --always --dirty 2>/dev/null || echo "commit unknown"
  nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader || true
  "$NVCC" --version | tail -n 2
} | tee "$logs/machine.txt"

status=0
# step NAME COMMAND...: runs it, keeps its output, says how long it took.
step() {
  local name=$1 start=$SECONDS outcome=ok
  shift
  "$@" 2>&1 | tee "$logs/$name.log" || outcome=FAILED
  printf '== %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - start))
  [ $outcome = ok ] || status=1
}
step build build_targets cuda-release all
[ $status -eq 0 ] || exit 1
step tests ctest --test-dir "$root/build/cuda-release" -L gpu --output-on-failure --parallel 4
[ $sanitize = no ] || step sanitize bash "$root/tools/sanitize.sh" --logs "$logs/sanitize" "$@"
exit $status
