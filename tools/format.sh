#!/usr/bin/env bash
# clang-format over every tracked C++ and CUDA file.
#
#   bash tools/format.sh            rewrites them
#   bash tools/format.sh --check    rewrites nothing; names the files that would change, exits 1 where there are any
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  '' | --check) ;;
  *)
    echo "usage: bash tools/format.sh [--check]" >&2
    exit 2
    ;;
esac
if ! command -v clang-format >/dev/null; then
  echo "clang-format is missing: apt-get install clang-format" >&2
  exit 1
fi
mapfile -d '' files < <(git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh')
if [ "${1:-}" != --check ]; then
  clang-format -i "${files[@]}"
  exit
fi
changed=0
for file in "${files[@]}"; do
  cmp -s "$file" <(clang-format "$file") && continue
  echo "$file"
  changed=1
done
exit $changed
