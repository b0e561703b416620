#!/usr/bin/env bash
# Installs libclang from a pinned PyPI wheel into a cache folder, once, and prints
# the export that makes it known to bindgen:
#
#   eval "$(scripts/libclang.sh)"
#
# The folder is ${XDG_CACHE_HOME:-~/.cache}/kron-lora/libclang-18; about 100 MB.
set -euo pipefail

folder="${XDG_CACHE_HOME:-$HOME/.cache}/kron-lora/libclang-18"

if [ ! -e "$folder/complete" ]; then
  rm -rf "$folder"
  mkdir -p "$folder"
  python3 -m venv "$folder" >&2
  "$folder/bin/pip" install --quiet --disable-pip-version-check libclang==18.1.1 >&2
  touch "$folder/complete"
fi

library=$(echo "$folder"/lib/python3*/site-packages/clang/native)
echo "export LIBCLANG_PATH='$library'"
