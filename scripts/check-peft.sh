#!/usr/bin/env bash
# Checks the folders and files that kron writes against the real packages: PEFT
# and LyCORIS load them and compute the same, and kron reads what they write.
#
#   scripts/check-peft.sh [VENV [KRON]]
#
# VENV is made when missing (2 GB), target/peft-venv by default; KRON is the program, built by default.
#
# Exits 0 and says "skipped" where the packages cannot be installed, 1 where something differs.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-${CARGO_TARGET_DIR:-target}/peft-venv}

skip() { echo "check-peft: skipped: $1"; exit 0; }

install() {
    local pip=("$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 30)
    python3 -m venv "$venv" &&
    "${pip[@]}" --no-deps torch==2.15.0 peft==0.21.2 lycoris-lora==4.1.3 accelerate 'transformers>=5,<6' &&
    # diffusers' converters alone are used; the pipelines need more.
    "${pip[@]}" --no-deps diffusers==0.42.1 importlib_metadata zipp &&
    "${pip[@]}" numpy pillow safetensors==0.8.0 filelock typing_extensions sympy networkx jinja2 fsspec \
        huggingface_hub tokenizers pyyaml regex requests tqdm packaging psutil einops toml typer &&
    touch "$venv/complete"
}

# 2 GB, as much again while they are unpacked.
room() { mkdir -p "$venv" && (($(df --output=avail -k "$venv" | tail -n 1) > 6000000)); }

[ -e "$venv/complete" ] || room || skip "less than 6 GB are free"
[ -e "$venv/complete" ] || install || skip "the packages cannot be installed"
python3 scripts/torch_stand_ins.py "$(echo "$venv"/lib/python3*/site-packages/torch/lib)" || skip "no C compiler or readelf for the stand-in libraries"
"$venv/bin/python" -c 'import torch' || skip "torch does not start on this machine"

kron=${2:-}
if [ -z "$kron" ]; then
    cargo build --quiet -p kron-cli
    kron=${CARGO_TARGET_DIR:-target}/debug/kron
fi
exec "$venv/bin/python" scripts/check_peft.py "$kron" tests/golden/model_llama
