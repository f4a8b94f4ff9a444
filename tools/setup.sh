#!/usr/bin/env bash
# What a build needs, on Debian 12 and Ubuntu 24.04.
#
#   bash tools/setup.sh     installs the missing packages and says which build this machine gets
#   . tools/setup.sh        gives the other tools the functions below, and does nothing else
#
# Packages come from apt alone, and only those that are missing: as root, by sudo without a password, or by sudo on a
# terminal. Anyone else is told the line to run. A CUDA toolkit is never installed.
# ccache is used where it is installed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

needed_commands="g++ cmake ninja pkg-config curl git"
browser_packages="chromium chromium-driver python3-selenium" # what the pages are tested in: tools/test.sh alone
needed_libraries="libopenblas-dev libpng-dev zlib1g-dev nlohmann-json3-dev libcli11-dev doctest-dev ca-certificates"
cmake_wanted=3.25
nvcc_wanted=12.4
capability_wanted=8.0

# die LINE...
die() {
  printf '%s\n' "$@" >&2
  exit 1
}

# version_at_least HAVE WANTED
version_at_least() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

cmake_version() { cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p'; }

# missing_of PACKAGE...
missing_of() {
  local name
  for name in "$@"; do
    dpkg -s "$name" 2>/dev/null | grep -q '^Status: .* installed$' || echo "$name"
  done
}

missing_packages() {
  local name
  for name in $needed_commands; do
    command -v "$name" >/dev/null && continue
    case $name in
      ninja) echo ninja-build ;;
      *) echo "$name" ;;
    esac
  done
  # shellcheck disable=SC2086
  missing_of $needed_libraries
}

# as_root COMMAND...
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    sudo "$@"
  fi
}

may_become_root() {
  [ "$(id -u)" -eq 0 ] && return
  command -v sudo >/dev/null || return
  sudo -n true 2>/dev/null || { [ -t 0 ] && [ -t 2 ]; }
}

# Installs what is missing. Prints nothing, and does not call apt, where all is there.
install_packages() {
  if ! command -v dpkg >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This is not Debian or Ubuntu: nothing is installed, the build says what it misses (third_party/README.md)." >&2
    return
  fi
  local packages log
  mapfile -t packages < <(missing_packages)
  if [ ${#packages[@]} -gt 0 ]; then
    if ! may_become_root; then
      die "Packages are missing, and this is neither root nor a user with sudo. Run this once, then try again:" \
        "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}"
    fi
    echo "installing ${packages[*]}" >&2
    log=$(mktemp)
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
    # A mirror that fails once may answer a moment later; stale lists can still be good enough, so the install decides.
    as_root "${apt[@]}" update >"$log" 2>&1 || { sleep 5 && as_root "${apt[@]}" update >>"$log" 2>&1; } || true
    if ! as_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
      tail -n 20 "$log" >&2
      die "apt-get could not install ${packages[*]}; the whole log is $log"
    fi
    rm -f "$log"
  fi
  version_at_least "$(cmake_version)" $cmake_wanted ||
    die "cmake >= $cmake_wanted is needed, $(command -v cmake) is $(cmake_version): install a newer one, or put it first in PATH."
}

# Installs the browser that the pages are tested in, where it can be had (Ubuntu's is a snap); says so where it cannot.
install_browser() {
  command -v dpkg >/dev/null && command -v apt-get >/dev/null || return 0
  local packages
  # shellcheck disable=SC2086
  mapfile -t packages < <(missing_of $browser_packages)
  [ ${#packages[@]} -gt 0 ] || return 0
  echo "installing ${packages[*]}" >&2
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
  if may_become_root && { as_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}" ||
    { as_root "${apt[@]}" update && as_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; }; } >/dev/null 2>&1; then
    return 0
  fi
  echo "${packages[*]} could not be installed: the tests of the pages in a browser will count as skipped." >&2
}

# Sets NVCC to the first nvcc that is new enough: of PATH, then /usr/local/cuda, then the newest /usr/local/cuda-*.
find_nvcc() {
  local candidate version
  while read -r candidate; do
    [ -x "$candidate" ] || continue
    version=$("$candidate" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    if [ -n "$version" ] && version_at_least "$version" $nvcc_wanted; then
      NVCC=$candidate
      return 0
    fi
  done < <(
    command -v nvcc
    echo /usr/local/cuda/bin/nvcc
    printf '%s\n' /usr/local/cuda-*/bin/nvcc | sort -rV
  )
  return 1
}

gpu_present() { [ -e /dev/nvidia0 ] || nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# The first GPU's compute capability ("9.0"); nothing where the driver does not say.
gpu_capability() {
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/^\([0-9.]*\).*/\1/p'
}

# Sets BUILD, a preset of CMakePresets.json: cuda-release where a GPU and an nvcc for it are, else cpu-release.
choose_build() {
  BUILD=cpu-release
  gpu_present || return 0
  local capability
  capability=$(gpu_capability)
  if [ -n "$capability" ] && ! version_at_least "$capability" $capability_wanted; then
    echo "The GPU has compute capability $capability, the kernels need $capability_wanted: building for the CPU." >&2
  elif find_nvcc; then
    BUILD=cuda-release
  else
    echo "There is a GPU but no nvcc >= $nvcc_wanted (PATH, /usr/local/cuda*): install the CUDA toolkit" \
      "(https://developer.nvidia.com/cuda-downloads) to use it; building for the CPU." >&2
  fi
}

# build_targets PRESET TARGET...: configures build/PRESET and builds. FM_CMAKE_FLAGS: more flags for the configuration.
build_targets() {
  local preset=$1 launcher log flags
  shift
  launcher=$(command -v ccache || true)
  read -ra flags <<<"${FM_CMAKE_FLAGS:-}"
  flags+=("-DCMAKE_CXX_COMPILER_LAUNCHER=$launcher")
  case $preset in
    cuda-*)
      [ -n "${NVCC:-}" ] || find_nvcc || die "no nvcc >= $nvcc_wanted found (PATH, /usr/local/cuda*)."
      flags+=("-DCMAKE_CUDA_COMPILER=$NVCC" "-DCMAKE_CUDA_COMPILER_LAUNCHER=$launcher")
      ;;
  esac
  log=$root/build/$preset/configure.log
  mkdir -p "$root/build/$preset"
  if ! (cd "$root" && cmake --preset "$preset" "${flags[@]}") >"$log" 2>&1; then
    cat "$log" >&2
    die "build/$preset could not be configured."
  fi
  NINJA_STATUS="[%f/%t, %e s] " cmake --build "$root/build/$preset" --target "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  install_packages
  choose_build
  echo "ready; this machine builds build/$BUILD"
fi
