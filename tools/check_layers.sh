#!/usr/bin/env bash
# Refuses an include that points up: kernels < engine < models < apps; tests and tools are included by nobody.
set -u
cd "$(dirname "$0")/.." || exit
status=0
refuse() {  # refuse FOLDER 'folders|it|must|not|include'
  local found
  found=$(grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]+\"($2)/" "$1" --include='*.h' --include='*.cuh' \
    --include='*.cpp' --include='*.cu')
  if [ -n "$found" ]; then
    printf '%s may not include from %s:\n%s\n' "$1" "$2" "$found"
    status=1
  fi
}
refuse kernels 'engine|models|apps|tests|tools'
refuse engine 'models|apps|tests|tools'
refuse models 'apps|tests|tools'
refuse apps 'tests|tools'
# Only one folder may know the matrix libraries.
found=$(grep -rnE '#[[:space:]]*include[[:space:]]+[<"](cblas|cublasLt)' kernels engine models apps | grep -v '^kernels/matmul/')
if [ -n "$found" ]; then
  printf 'only kernels/matmul may include cuBLASLt and CBLAS:\n%s\n' "$found"
  status=1
fi
exit $status
