#!/usr/bin/env bash
# What can be said about the device code without a GPU:
#
#   1. every kernel compiles for every architecture, without a spill and
#      without local memory;
#   2. the machine code of each tensor-core kernel has the instructions that
#      it was written for: HMMA, LDSM, 16-byte LDGSTS, LDG and STG; and merge
#      its 16-byte accesses.
#
# It builds the crate, reads the very fatbins that the library embeds, and runs
# what can be tested of the driver's side on any machine.
# Needs nvcc, cuobjdump and nvdisasm (`eval "$(scripts/cuda-toolkit.sh)"`).
set -euo pipefail
cd "$(dirname "$0")/.."

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo test --locked -p kron-kernels --features cuda --test gpu --no-run \
  --message-format json-render-diagnostics > "$messages"
PATH="${CUDA_HOME:+$CUDA_HOME/bin:}$PATH" python3 scripts/cuda_gates.py "$messages"
cargo test --locked -p kron-kernels --features cuda --test gpu
