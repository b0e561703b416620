#!/usr/bin/env bash
# Builds the Python package's wheel, installs it beside real torch and PEFT, and runs its tests there; then its
# example.
#
#   scripts/check-python.sh [VENV]
#
# VENV is the Python of scripts/check-peft.sh, target/peft-venv by default.
# Exits 0 and says "skipped" where the packages cannot be installed, 1 where something fails.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=$(realpath -m "${1:-$target/peft-venv}")

skip() { echo "check-python: skipped: $1"; exit 0; }

[ -e "$venv/complete" ] || skip "scripts/check-peft.sh has not made $venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 30 'maturin==1.16.0' 'pytest>=9,<10' ||
    skip "maturin and pytest cannot be installed"
"$venv/bin/python" -c 'import torch' || skip "torch does not start on this machine"

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
tests=$PWD/crates/kron-py/tests

# A target folder of its own: pyo3's features and the optimised profile are not those of the workspace.
build() {
    (cd crates/kron-py && CARGO_TARGET_DIR=$target/python "$venv/bin/maturin" build --quiet --locked \
        --interpreter "$venv/bin/python" "$@")
}

echo "the kernels of a GPU, emulated"
build --no-default-features --features emulate --out "$wheels/emulated"
"$venv/bin/python" -m zipfile -e "$wheels"/emulated/*.whl "$wheels/package"
(cd "$wheels" && PYTHONPATH=$wheels/package "$venv/bin/python" -m pytest -q -p no:cacheprovider "$tests")

echo "the wheel"
# Without the programs, which are checked as programs and take minutes to compile once more.
build --release --no-default-features --out "$wheels"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/*.whl
(cd "$wheels" && "$venv/bin/python" -m pytest -q -p no:cacheprovider "$tests")
"$venv/bin/python" crates/kron-py/examples/train.py "$wheels/adapter"
