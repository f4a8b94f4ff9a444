#!/usr/bin/env bash
# Builds, trains a model and draws 64 digits with it.
#
#   bash tools/run.sh                    a few minutes, on a GPU or on two CPU cores
#   bash tools/run.sh --epochs 10        every argument goes to fmtrain (build/*/bin/fmtrain --help lists them)
#   FM_BACKBONE=mamba bash tools/run.sh  mamba, transformer or hybrid (default)
#
# With a GPU: the paper's model, 3 epochs; without: the tiny preset. The run's folder is runs/<backbone>-<preset>. A run
# that was stopped is continued, a finished one is only sampled again, and --epochs with a larger number goes on from
# there; --overwrite starts anew.
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
build_targets "$BUILD" fmtrain fmsample
bin=$root/build/$BUILD/bin

preset=tiny
[ "$BUILD" = cuda-release ] && preset=paper
preset=$(value_of --preset $preset "$@")
backbone=$(value_of --backbone "${FM_BACKBONE:-hybrid}" "$@")
out=runs/$backbone-$preset
[ "$PWD" = "$root" ] || out=$root/$out
out=$(value_of --out "$out" "$@")

arguments=("$@")
given --preset "$@" || arguments+=(--preset "$preset")
given --backbone "$@" || arguments+=(--backbone "$backbone")
given --out "$@" || arguments+=(--out "$out")
if [ "$preset" = paper ] && ! given --epochs "$@"; then arguments+=(--epochs 3); fi
if [ -d "$out" ] && ! given --overwrite "$@" && ! given --resume "$@"; then arguments+=(--resume latest); fi

# A run that is continued keeps its data. Where MNIST may lie is fmtrain's to know: it is asked what it would take.
if [ ! -e "$out/ckpt/latest" ] && ! given --data "$@"; then
  probe=("$bin/fmtrain" --dry-run --device cpu --preset tiny)
  if [[ $("${probe[@]}" 2>/dev/null) == *'"source": "digits"'* ]]; then
    echo "fetching MNIST (11 MB)"
    "${probe[@]}" --download >/dev/null 2>&1 ||
      echo "MNIST could not be fetched (is there a network?): training on the built-in digits"
  fi
fi

echo "training $backbone, preset $preset, in $out"
"$bin/fmtrain" "${arguments[@]}"
"$bin/fmsample" --ckpt "$out" --n 64 --out "$out/digits.png" >/dev/null
echo "64 digits: $out/digits.png"
