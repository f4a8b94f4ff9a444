#!/usr/bin/env bash
# compute-sanitizer over the GPU tests of build/cuda-release, one process a test file.
#
#   bash tools/sanitize.sh                             memcheck, then racecheck
#   bash tools/sanitize.sh --tool initcheck scan       one tool (memcheck, racecheck, initcheck, synccheck; repeatable),
#                                                      over the tests whose folder.file matches the regular expression
#   --jobs N       N processes at a time (default 1)
#   --logs FOLDER  where the logs go (default build/cuda-release/sanitize)
#   SANITIZER_FLAGS="..."  more flags for compute-sanitizer
#
# Exits 1 where a tool reports an error or a test fails, 77 where there is no GPU.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

build=$root/build/cuda-release
logs=$build/sanitize
tools=()
jobs=1
filter=.
while [ $# -gt 0 ]; do
  case $1 in
    --tool | --jobs | --logs)
      [ $# -ge 2 ] || die "$1 wants a value."
      case $1 in
        --tool) tools+=("$2") ;;
        --jobs) jobs=$2 ;;
        --logs) logs=$2 ;;
      esac
      shift 2
      ;;
    -*) die "unknown option $1; the head of tools/sanitize.sh lists them." ;;
    *)
      filter=$1
      shift
      ;;
  esac
done
[ ${#tools[@]} -gt 0 ] || tools=(memcheck racecheck)
for tool in "${tools[@]}"; do
  case $tool in
    memcheck | racecheck | initcheck | synccheck) ;;
    *) die "--tool must be memcheck, racecheck, initcheck or synccheck, got $tool" ;;
  esac
done

sanitizer=$(command -v compute-sanitizer || true)
if [ -z "$sanitizer" ] && find_nvcc; then sanitizer=$(dirname "$NVCC")/compute-sanitizer; fi
[ -x "$sanitizer" ] || die "compute-sanitizer is missing: it is part of the CUDA toolkit (package cuda-sanitizer-*)."
[ -x "$build/bin/test_ops" ] || die "build/cuda-release has no tests: build them with tools/gpu_check.sh or tools/test.sh."
if ! gpu_present; then
  echo "skipped: no GPU" >&2
  exit 77
fi
mkdir -p "$logs"

# check_one TOOL FOLDER.STEM: runs one test file under one tool and prints one line.
# shellcheck disable=SC2317  # xargs calls it, in a shell of its own
check_one() {
  local tool=$1 name=$2 start=$SECONDS status=0 flags log=$logs/$1-$2.log
  if [ "$tool" = racecheck ]; then export FM_TEST_EFFORT=small; fi  # it slows kernels some hundred times
  read -ra flags <<<"${SANITIZER_FLAGS:-}"
  "$sanitizer" --tool "$tool" --error-exitcode 99 "${flags[@]}" "$build/bin/test_${name%%.*}" \
    --test-suite=gpu --source-file="*/${name#*.}.cpp" >"$log" 2>&1 || status=$?
  case $status in
    0) status=ok ;;
    77) status=skipped ;;
    99)
      status="FAILED: $tool found errors, see $log"
      # cuBLASLt's own kernels order their copies in ways that racecheck does not follow; ours are all that counts.
      if [ "$tool" = racecheck ] && grep -q 'Status: SUCCESS' "$log" &&
        ! grep 'Race reported' "$log" | grep -qvE 'nvjet|cutlass'; then
        status="ok (races reported within cuBLASLt alone)"
      fi
      ;;
    *) status="FAILED: exit $status, see $log" ;;
  esac
  printf '%-9s %-32s %4d s  %s\n' "$tool" "$name" $((SECONDS - start)) "$status"
  [[ $status != FAILED* ]]
}
export -f check_one
export sanitizer build logs

mapfile -t names < <(cd "$root/tests" && grep -l 'TEST_SUITE("gpu")' ./*/*_test.cpp |
  sed 's|^\./||; s|/|.|; s|\.cpp$||' | grep -E -- "$filter")
[ ${#names[@]} -gt 0 ] || die "no GPU test matches $filter"
status=0
for tool in "${tools[@]}"; do
  # shellcheck disable=SC2016  # the inner shell expands
  printf '%s\n' "${names[@]}" | xargs -P "$jobs" -I{} bash -c 'check_one "$@"' _ "$tool" {} || status=1
done
exit $status
