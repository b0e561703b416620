#!/usr/bin/env bash
# Compares kron-train's log-probabilities on a GGUF model with PyTorch's on the folder that kron converts it to, for
# prompts and for conversations in the model's chat template.
#
#   scripts/check-logits.sh MODEL.gguf KRON KRON_TRAIN [VENV]
#
# MODEL is a GGUF of the LLaMA family, as scripts/fetch-smollm2.sh brings one. VENV is the Python of
# scripts/check-peft.sh, target/peft-venv by default.
#
# Exits 0 and says "skipped" where that Python is missing, 1 where something differs.
set -euo pipefail
(($# == 3 || $# == 4)) || { echo "usage: $0 MODEL.gguf KRON KRON_TRAIN [VENV]" >&2; exit 2; }
model=$(realpath "$1") kron=$(realpath "$2") train=$(realpath "$3")
cd "$(dirname "$0")/.."
venv=${4:-${CARGO_TARGET_DIR:-target}/peft-venv}

[ -e "$venv/complete" ] || { echo "check-logits: skipped: scripts/check-peft.sh has not made $venv"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$kron" convert "$model" "$scratch/hf" --to hf --dtype f32 >/dev/null
"$venv/bin/python" scripts/check_logits.py "$train" "$model" "$scratch"
