#!/usr/bin/env bash
# Trains an adapter on SmolLM2-135M, a quantised GGUF, and uses it: the loss falls, the adapter is exported, and
# the merged model generates the same text as the base with the adapter. The tokens of sixty
# texts are those of llama.cpp, which a test of cargo compares.
#   scripts/check-smollm2.sh KRON KRON_TRAIN MODEL.gguf FOLDER
set -euo pipefail
(($# == 4)) || { echo "usage: $0 KRON KRON_TRAIN MODEL.gguf FOLDER" >&2; exit 2; }
kron=$1 train=$2 model=$3 out=$4
mkdir -p "$out"

for i in {1..40}; do
  echo "The lighthouse keeper of number $((i % 7)) counts the ships, and the ships count the lighthouse keeper."
done > "$out/text.txt"
"$train" train --task lm --model "$model" --train "$out/text.txt" --max-len 32 --batch 4 --limit-train 32 \
  --epochs 2 --lr 2e-3 --method kron --a-out 4 --a-in 4 --rank 8 --alpha 32 --out "$out/run" >/dev/null

awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "loss") column = i; next }
  NR == 2 { first = $column } { last = $column }
  END { printf "loss: %s, then %s in %d steps\n", first, last, NR - 1; exit !(NR > 8 && last < 0.8 * first) }' \
  "$out/run/log.csv"

adapter=$out/run/adapter.safetensors
"$kron" convert "$adapter" "$out/lora" --to lora >/dev/null
"$kron" convert "$adapter" "$out/lora.gguf" --to gguf-lora --base "$model" >/dev/null
"$kron" diff "$adapter" "$out/lora.gguf" --json | python3 -c '
import json, sys
relative = json.load(sys.stdin)["total"]["relative_distance"]
assert relative < 1e-3, f"the exported adapter differs by {relative}"'
"$kron" merge "$model" "$adapter" "$out/merged.gguf" --dtype f32 >/dev/null

generate() { "$train" generate "$@" --prompt "The lighthouse keeper" --max-tokens 16 2>/dev/null; }
text=$(generate "$model" --adapter "$adapter")
[[ $text == "$(generate "$out/merged.gguf")" ]] || { echo "the merged model generates another text" >&2; exit 1; }
[[ $text != "$(generate "$model")" ]] || { echo "the adapter changes no text: $text" >&2; exit 1; }
echo "base with adapter, and merged model: The lighthouse keeper$text"

KRON_SMOLLM2=$(realpath "$model")
export KRON_SMOLLM2
cd "$(dirname "$0")/.."
cargo test --quiet --workspace --locked --test tokenizers -- --exact smollm2_has_the_tokens_of_llama_cpp
cargo test --quiet --workspace --locked --test many_adapters -- --exact smollm2_serves_a_batch
