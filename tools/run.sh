#!/usr/bin/env bash
# Builds, compares the three backbones and says which one the study's rule chooses.
#
#   bash tools/run.sh                       about two minutes of a GPU, or ten minutes of two CPU cores
#   bash tools/run.sh --preset paper        every argument goes to fmcompare run (build/*/bin/fmcompare run --help)
#   bash tools/run.sh --backbones mamba,hybrid --no-viewer
#
# With a GPU: preset quick; without: tiny. The comparison's folder is runs/compare-<preset>; one that was stopped goes
# on, a finished one is only reported again; --overwrite starts anew.
# Data: $FM_DATA_DIR, else the cache, else a download; where there is no network, the built-in digits.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# value_of FLAG DEFAULT ARGUMENT...: what the arguments give the flag, as "--flag value" or "--flag=value".
value_of() {
  local flag=$1 value=$2
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      "$flag") value=${2:-} ;;
      "$flag="*) value=${1#*=} ;;
    esac
    shift
  done
  printf '%s' "$value"
}

# given FLAG ARGUMENT...: is the flag among the arguments?
given() {
  local flag=$1 argument
  shift
  for argument in "$@"; do
    [[ $argument == "$flag" || $argument == "$flag="* ]] && return 0
  done
  return 1
}

install_packages
choose_build
echo "building build/$BUILD (a few minutes the first time)"
build_targets "$BUILD" fmcompare fmtrain fmsample
bin=$root/build/$BUILD/bin

preset=tiny
[ "$BUILD" = cuda-release ] && preset=quick
preset=$(value_of --preset $preset "$@")
out=runs/compare-$preset
[ "$PWD" = "$root" ] || out=$root/$out
out=$(value_of --out "$out" "$@")

arguments=("$@")
given --preset "$@" || arguments+=(--preset "$preset")
given --out "$@" || arguments+=(--out "$out")

# A comparison that is continued keeps its data. Where MNIST may lie is the tools' to know: fmtrain is asked what it would
# take.
if ! given --data "$@"; then
  if [ -e "$out/compare.json" ]; then
    source=$(sed -n 's/.*"source": "\(.*\)",$/\1/p' "$out/compare.json" | head -n 1)
    if [ "$source" = digits ]; then arguments+=(--data digits); fi
  else
    probe=("$bin/fmtrain" --dry-run --device cpu --preset tiny)
    if [[ $("${probe[@]}" 2>/dev/null) == *'"source": "digits"'* ]]; then
      echo "fetching MNIST (11 MB)"
      "${probe[@]}" --download >/dev/null 2>&1 ||
        echo "MNIST could not be fetched (is there a network?): comparing on the built-in digits"
    fi
  fi
fi

echo "comparing, preset $preset, in $out"
"$bin/fmcompare" run "${arguments[@]}"
