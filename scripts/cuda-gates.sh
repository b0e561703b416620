#!/usr/bin/env bash
# What can be said about the device code without a GPU:
#
#   1. every kernel compiles for every architecture, without a spill and
#      without local memory, and all programs and libraries link with them;
#   2. the machine code of each tensor-core kernel has the instructions that
#      it was written for: HMMA, LDSM, 16-byte LDGSTS, LDG and STG; and merge
#      its 16-byte accesses.
#
# It builds what has the kernels (but candle's crates, which ask for a whole
# toolkit), reads the very fatbins that the library embeds, and runs what can be
# tested of the driver's side on any machine.
# Needs nvcc, cuobjdump and nvdisasm (`eval "$(scripts/cuda-toolkit.sh)"`).
set -euo pipefail
cd "$(dirname "$0")/.."

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
# Of the whole workspace, so that the dependencies are those of the other steps; in one command, so that nvcc runs once.
all=(--workspace --locked --features kron-kernels/cuda,kron-tests/cuda,kron-bench/cuda,kron-capi/cuda)
cargo build "${all[@]}" --lib --bin kron-bench --test gpu --test device \
  --message-format json-render-diagnostics > "$messages"
PATH="${CUDA_HOME:+$CUDA_HOME/bin:}$PATH" python3 scripts/cuda_gates.py "$messages"
cargo test "${all[@]}" --test gpu
