#!/usr/bin/env bash
# Checks the GGUF files that kron writes in llama.cpp: a base with an exported adapter against the merged
# model, the text that kron-train generates, and the tokenizer of `kron convert --to hf` against llama.cpp's.
#
#   scripts/check-llama-cpp.sh MODEL.gguf [FOLDER [KRON KRON_TRAIN [TOKENS.json]]]
#
# MODEL is a GGUF of the LLaMA family, as scripts/fetch-smollm2.sh brings one. FOLDER takes the packages
# (100 MB, made when missing) and, while it runs, four models; target/llama-cpp by default. KRON and
# KRON_TRAIN are the programs, built by default. TOKENS.json takes llama.cpp's tokens of sixty texts, as in
# crates/kron-train/tests/data/smollm2_tokens.json. Needs Node.js and npm.
#
# Exits 0 and says "skipped" where the packages cannot be installed, 1 where something differs.
set -euo pipefail
model=$(realpath "$1")
cd "$(dirname "$0")/.."
folder=${2:-${CARGO_TARGET_DIR:-target}/llama-cpp}

skip() { echo "check-llama-cpp: skipped: $1"; exit 0; }

# Without the flags, npm brings every GPU's binaries, 732 MB.
npm_packages() {
    (cd "$folder" && npm install --silent --save-exact --omit=optional --ignore-scripts \
        node-llama-cpp@3.21.1 @node-llama-cpp/linux-x64@3.21.1)
}

python_packages() {
    python3 -m venv "$folder/venv" &&
        "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps tokenizers==0.23.3
}

mkdir -p "$folder"
[ -e "$folder/node_modules/node-llama-cpp" ] || npm_packages || skip "node-llama-cpp cannot be installed"
"$folder/venv/bin/python" -c 'import tokenizers' 2>/dev/null || python_packages || skip "tokenizers cannot be installed"

kron=${3:-} train=${4:-}
if [ -z "$train" ]; then
    cargo build --quiet --workspace --bin kron --bin kron-train
    kron=${CARGO_TARGET_DIR:-target}/debug/kron train=${CARGO_TARGET_DIR:-target}/debug/kron-train
fi
scratch=$(mktemp -d -p "$folder")
trap 'rm -rf "$scratch"' EXIT
node scripts/check_llama_cpp.mjs "$kron" "$train" "$model" "$(realpath "$folder")" "$scratch" ${5:+"$5"}
