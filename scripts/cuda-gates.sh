#!/usr/bin/env bash
# Checks the device code without a GPU:
#
#   1. every kernel compiles for every architecture, without spills or local
#      memory, and all programs and libraries link with it;
#   2. the machine code of each tensor-core kernel contains the instructions it
#      needs: HMMA, LDSM, 16-byte LDGSTS, LDG and STG; merge has 16-byte accesses;
#   3. no tensor-core kernel divides between its products, and `dx` loads all of
#      the old dX of a tile before it stores any;
#   4. the account of docs/KERNELS.md is that of the machine code, registers leave
#      room for the blocks that the plans assume, and no kernel executes more
#      instructions for its bytes than it may. `--write` writes the tables anew.
#
# Builds every crate with kernels except candle's, which need a whole toolkit,
# reads the fatbins that the library embeds, and runs the tests of the driver's
# side that need no GPU.
# Needs nvcc, cuobjdump and nvdisasm (`eval "$(scripts/cuda-toolkit.sh)"`).
set -euo pipefail
cd "$(dirname "$0")/.."

messages=$(mktemp)
launches=$(mktemp)
trap 'rm -f "$messages" "$launches"' EXIT
# The whole workspace, so that cargo chooses the dependencies' features as in the other steps.
# One command, so that nvcc runs once.
all=(--workspace --locked --features kron-kernels/cuda,kron-tests/cuda,kron-bench/cuda,kron-capi/cuda)
cargo build "${all[@]}" --lib --bin kron-bench --test gpu --test device --example account \
  --message-format json-render-diagnostics > "$messages"
"${CARGO_TARGET_DIR:-target}/debug/examples/account" > "$launches"
PATH="${CUDA_HOME:+$CUDA_HOME/bin:}$PATH" python3 scripts/cuda_gates.py "$messages" "$launches" "$@"
cargo test "${all[@]}" --test gpu
