#!/usr/bin/env bash
# Packs what a machine with a GPU, but without Rust and without a network, has
# to run: the tests that compute on a device, kron-bench and the C library.
#
#   scripts/gpu-bundle.sh [folder]      default: target/kron-gpu; makes folder.tar.gz too
#   scripts/gpu-bundle.sh --rehearsal folder
#
# There: tar xf kron-gpu.tar.gz && kron-gpu/run.sh
# The build needs nvcc (docs/BUILD.md); the other machine a driver for CUDA 13.0,
# cuBLASLt for kron-bench, and glibc at least as new as here. To time PEFT and LyCORIS
# too, put their wheels into the folder where its Python does not have them.
# A rehearsal's folder has the debug build of the other CI steps and is not packed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

limit_mb=50
rehearsal=
[[ ${1:-} != --rehearsal ]] || { rehearsal=1 && shift; }
[[ -z $rehearsal || -n ${1:-} ]] || { echo "gpu-bundle.sh: --rehearsal needs a folder" >&2; exit 2; }
out=${1:-target/kron-gpu}
if [[ -z ${NVCC:-}${CUDA_HOME:-}${CUDA_PATH:-} ]] && ! command -v nvcc >/dev/null; then
  eval "$(scripts/cuda-toolkit.sh)"
fi

rm -rf "$out" "$out.tar.gz"
mkdir -p "$out"

features=kron-kernels/cuda,kron-tests/cuda,kron-bench/cuda,kron-capi/cuda
parts=(--bin kron-bench --test gpu --test device --example plan)
if [[ -n $rehearsal ]]; then
  # The whole workspace, so that cargo chooses the dependencies' features as in the other steps.
  build=(--workspace --features "$features" --test fake_driver)
else
  build=(--profile gpu -p kron-kernels -p kron-tests -p kron-bench -p kron-capi --features "$features,kron-bench/nvtx")
fi
# One cargo command, so that nvcc runs once; it prints what it made.
cargo build --locked --message-format json-render-diagnostics "${build[@]}" --lib "${parts[@]}" |
  python3 -c '
import json, shutil, sys
for made in map(json.loads, sys.stdin):
    if made.get("executable"):
        shutil.copy(made["executable"], sys.argv[1] + "/" + made["target"]["name"])
    for file in made.get("filenames", []):
        if file.endswith(("libkron_capi.so", "libkron_fake_driver.so")):
            shutil.copy(file, sys.argv[1])' "$out"
cp crates/kron-capi/kron.h crates/kron-capi/tests/check.py "$out/"
cp scripts/gpu_peers.py scripts/gpu_bytes.py "$out/"
cp scripts/gpu-run.sh "$out/run.sh"
for name in gpu device kron-bench plan libkron_capi.so; do
  [[ -s $out/$name ]] || { echo "gpu-bundle.sh: $name was not built" >&2; exit 1; }
done
[[ -z $rehearsal ]] || exit 0

tar -C "$(dirname "$out")" -czf "$out.tar.gz" "$(basename "$out")"
size=$(du -s --block-size=MB "$out" | cut -f1)
echo "$out.tar.gz: $(du -s --block-size=MB "$out.tar.gz" | cut -f1), unpacked $size"
((${size%MB} <= limit_mb)) || { echo "gpu-bundle.sh: $size is over the limit of $limit_mb MB" >&2; exit 1; }
