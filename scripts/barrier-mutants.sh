#!/usr/bin/env bash
# Drops each barrier and weakens each wait of the kernels, one at a time, and
# asks that the emulated suite fails. Slow: one rebuild and run per mutant.
#
#   scripts/barrier-mutants.sh [file …]      default: every kernel file
#
# Works on a copy of the sources; the working tree is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

files=("$@")
[ ${#files[@]} -gt 0 ] || files=(contract.cuh forward_mma.cu backward_dy_mma.cu backward_dx_mma.cu)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mutants"

survivors=0
for file in "${files[@]}"; do
  path=kernels/cuda/$file
  while IFS=: read -r line text; do
    cp "$path" "$copy/$path"
    case $text in
    *__syncthreads*) sed -i "${line}s/__syncthreads();/;/" "$copy/$path" ;;
    *) sed -i "${line}s/cp_async_wait<[^>]*>/cp_async_wait<99>/" "$copy/$path" ;;
    esac
    if (cd "$copy" && cargo test -q -p kron-kernels --test conformance > "$copy/log" 2>&1); then
      echo "survived: $path:$line:$text"
      survivors=$((survivors + 1))
    elif grep -q "^error" "$copy/log" && ! grep -q "test result: FAILED" "$copy/log"; then
      echo "did not build: $path:$line:$text" >&2
      exit 1
    else
      echo "killed: $path:$line:$text"
    fi
  done < <(grep -nE "__syncthreads\(\);|cp_async_wait<" "$path")
  cp "$path" "$copy/$path"
done
echo "$survivors mutants survived"
[ "$survivors" -eq 0 ]
