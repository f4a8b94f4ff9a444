#!/usr/bin/env bash
# A profile of a few training steps, by Nsight Systems (a timeline with the engine's NVTX ranges) or Nsight Compute (the
# hardware counters of single kernels), with the build that tools/run.sh makes.
#
#   bash tools/profile.sh                                the timeline of 5 steps of the hybrid, in profiles/
#   bash tools/profile.sh --backbone mamba --batch 64    every other argument goes to fmtrain
#   bash tools/profile.sh --kernels scan_                Nsight Compute instead, of the kernels whose names match
#   --steps START:STEPS  the steps that are recorded (default 20:5; Nsight Compute: 20:1)
#   --out FOLDER         where the report goes (default profiles)
#
# Data is the built-in set unless --data is given. Without a GPU a timeline still shows the ranges of the CPU's steps.
# Exits 77 where the profiler is not installed (it says how to get it) or where Nsight Compute finds no GPU.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

steps=
kernels=
out=profiles
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --steps | --kernels | --out)
      [ $# -ge 2 ] || die "$1 wants a value."
      case $1 in
        --steps) steps=$2 ;;
        --kernels) kernels=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      arguments+=("$1")
      shift
      ;;
  esac
done
[ -n "$steps" ] || { [ -n "$kernels" ] && steps=20:1 || steps=20:5; }
[[ $steps =~ ^[0-9]+:[1-9][0-9]*$ ]] || die "--steps must be START:STEPS, as in 20:5, got $steps"

# find_tool NAME: of PATH, else beside nvcc or where NVIDIA's packages put it, the newest.
find_tool() {
  local candidate
  candidate=$(command -v "$1" || true)
  if [ -z "$candidate" ]; then
    candidate=$(printf '%s\n' /usr/local/cuda*/bin/"$1" /opt/nvidia/nsight-*/*/"$1" /opt/nvidia/nsight-*/*/bin/"$1" |
      sort -rV | while read -r path; do [ -x "$path" ] && echo "$path" && break; done || true)
  fi
  [ -n "$candidate" ] && echo "$candidate"
}

if [ -n "$kernels" ]; then
  tool=ncu product="Nsight Compute" package="nsight-compute-*"
else
  tool=nsys product="Nsight Systems" package="nsight-systems-*"
fi
if ! profiler=$(find_tool $tool); then
  echo "skipped: $product ($tool) is not installed. It comes with the CUDA toolkit, as the package $package of NVIDIA's" \
    "repository, or from https://developer.nvidia.com/${product// /-}" >&2
  exit 77
fi
if [ -n "$kernels" ] && ! gpu_present; then
  echo "skipped: no GPU, and Nsight Compute measures nothing else" >&2
  exit 77
fi

choose_build
bin=$root/build/$BUILD/bin/fmtrain
[ -x "$bin" ] || build_targets "$BUILD" fmtrain
[ "$BUILD" = cuda-release ] && preset=paper || preset=tiny
mkdir -p "$out"
report=$out/$(date +%Y%m%d-%H%M%S)
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
last=$((${steps%:*} + ${steps#*:} + 1))
command=("$bin" --profile "$steps" --out "$run/run")
# default FLAG VALUE: unless the caller gives the flag.
default() {
  [[ " ${arguments[*]-} " == *" $1"[\ =]* ]] || command+=("$1" "$2")
}
default --preset "$preset"
default --backbone hybrid
default --data digits
default --max-steps "$last"
default --sample-every -1
command+=("${arguments[@]}")

failed() {
  tail -n 20 "$report.log" >&2
  die "$product or the run failed; the whole log is $report.log"
}
if [ -n "$kernels" ]; then
  "$profiler" --profile-from-start off --set full --nvtx --kernel-name "regex:$kernels" --force-overwrite \
    --export "$report" "${command[@]}" >"$report.log" 2>&1 || failed
  echo "report: $report.ncu-rep"
  echo "open:   ncu-ui $report.ncu-rep, or $profiler --import $report.ncu-rep --page details"
else
  # The window is an NVTX range, too, which works without a GPU; its name is not a registered string.
  window=(--capture-range cudaProfilerApi)
  [ "$BUILD" = cuda-release ] ||
    window=(--capture-range nvtx --nvtx-capture 'profile@fm' --env-var NSYS_NVTX_PROFILER_REGISTER_ONLY=0)
  "$profiler" profile --trace cuda,nvtx,osrt "${window[@]}" --capture-range-end stop --force-overwrite true \
    --output "$report" "${command[@]}" >"$report.log" 2>&1 || failed
  echo "report: $report.nsys-rep"
  echo "open:   nsys-ui $report.nsys-rep, or $profiler stats --report nvtx_sum,cuda_gpu_kern_sum $report.nsys-rep"
fi
