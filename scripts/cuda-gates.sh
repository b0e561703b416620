#!/usr/bin/env bash
# What can be said about the device code without a GPU:
#
#   1. every kernel compiles for every architecture, without a spill and
#      without local memory: ptxas ends with an error otherwise;
#   2. the machine code of each tensor-core kernel has the instructions that
#      it was written for: HMMA, LDSM, 16-byte LDGSTS, LDG and STG, no LDL, no STL.
#
#   scripts/cuda-gates.sh [arch …]          default: 80 86 89 90a 100 120
#
# Needs nvcc, and nvdisasm from 13.0 or later (`eval "$(scripts/cuda-toolkit.sh)"`).
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${NVCC:-${CUDA_HOME:+$CUDA_HOME/bin/}nvcc}
disassemble=${CUDA_HOME:+$CUDA_HOME/bin/}nvdisasm
archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(80 86 89 90a 100 120)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for arch in "${archs[@]}"; do
  "$nvcc" -std=c++17 -O3 -cubin -gencode "arch=compute_$arch,code=sm_$arch" \
    -Xptxas -v,-warn-spills,-warn-lmem-usage,-Werror kernels/cuda/kron.cu -o "$work/$arch.cubin" 2> "$work/$arch.log" ||
    { grep -E "error|warning" "$work/$arch.log" >&2; echo "sm_$arch: refused" >&2; exit 1; }
  "$disassemble" -c "$work/$arch.cubin" > "$work/$arch.sass"
  python3 - "$arch" "$work/$arch.sass" "$work/$arch.log" <<'PYTHON'
import re, sys

arch, sass, log = sys.argv[1:]
needs = {  # kernel → instructions that its code must have
    "down": [r"HMMA\.16816\.F32", r"LDSM\.16\.M88\.4", r"LDGSTS\.\S*128"],
    "up": [r"HMMA", r"LDSM\.16\.M88", r"LDG\.E\.128", r"STG\.E\.128"],
    "dy": [r"HMMA\.16816\.F32", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4", r"LDGSTS\.\S*128"],
    "dx": [r"HMMA\.16816\.F32", r"LDSM\.16\.MT88\.4", r"LDGSTS\.\S*128", r"LDG\.E\.128", r"STG\.E\.128"],
}
code = {}
for part in re.split(r"^\s*\.section\s+", open(sass).read(), flags=re.M):
    name = re.match(r"\.text\.(kron_\w+)", part)
    if name:
        code[name[1]] = part
fast = 0
for name, text in sorted(code.items()):
    for bad in (r"\bLDL\b", r"\bSTL\b"):
        assert not re.search(bad, text), f"sm_{arch} {name}: {bad} is local memory"
    match = re.match(r"kron_(\w+?)_(bf16|f16)_r(\d+)$", name)
    if not match:
        continue
    fast += 1
    for need in needs[match[1]]:
        assert re.search(need, text), f"sm_{arch} {name}: no {need}"
    bf16 = bool(re.search(r"HMMA\.\d+\.F32\.BF16", text))
    assert bf16 == (match[2] == "bf16"), f"sm_{arch} {name}: the wrong type in HMMA"
assert fast == 48, f"sm_{arch}: {fast} tensor-core kernels, but there are 4 × 2 × 6"
registers = [int(n) for n in re.findall(r"Used (\d+) registers", open(log).read())]
print(f"sm_{arch}: {len(code)} kernels, {fast} on tensor cores; at most {max(registers)} registers; no spill, no local memory")
PYTHON
done
