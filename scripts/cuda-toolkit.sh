#!/usr/bin/env bash
# Installs nvcc, ptxas and the disassemblers from pinned PyPI wheels into a
# cache folder, once, and prints the exports that make them known:
#
#   eval "$(scripts/cuda-toolkit.sh)"
#
# The folder is ${XDG_CACHE_HOME:-~/.cache}/kron-lora/cuda-13.0; about 300 MB.
# All wheels are pinned: an nvvm or crt of a later release writes PTX that this
# ptxas refuses.
set -euo pipefail

wheels=(
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51
)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/kron-lora/cuda-13.0"

if [ ! -e "$folder/complete" ]; then
  rm -rf "$folder"
  mkdir -p "$folder"
  python3 -m venv "$folder" >&2
  "$folder/bin/pip" install --quiet --disable-pip-version-check "${wheels[@]}" >&2
  touch "$folder/complete"
fi

home=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
echo "export CUDA_HOME='$home'"
echo "export PATH='$home/bin':\"\$PATH\""
