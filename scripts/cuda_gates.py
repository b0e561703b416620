"""Reads the fatbins of a build and checks their machine code: see cuda-gates.sh.

usage: cuda_gates.py MESSAGES      output of cargo build --message-format json
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ARCHS = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}
COPY, STORE, LOAD = r"LDGSTS\.\S*128", r"STG\.E\.\S*128", r"LDG\.E\.\S*128"
MATRIX, TRANSPOSED = r"LDSM\.16\.M88", r"LDSM\.16\.MT88"
# Pass → instructions that each of its kernels must contain.
NEEDS = {
    "down": [r"HMMA\.16816\.F32", MATRIX, COPY],
    "up": [r"HMMA\.\d+\.F32", MATRIX, LOAD, STORE],
    "dy": [r"HMMA\.16816\.F32", MATRIX, TRANSPOSED, COPY],
    "dx": [r"HMMA\.16816\.F32", TRANSPOSED, COPY, LOAD, STORE],
    "merge": [LOAD, STORE],
}


def out_dir(messages: Path) -> Path:
    for line in messages.read_text().splitlines():
        message = json.loads(line)
        if message.get("reason") == "build-script-executed" and "kron-kernels" in message["package_id"]:
            return Path(message["out_dir"])
    sys.exit("cargo names no build script of kron-kernels")


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(text: str, heading: str):
    """Yields (arch, kernel, its part of the text) of cuobjdump's output."""
    for part in re.split(r"^arch = ", text, flags=re.M)[1:]:
        arch = part.split(maxsplit=1)[0]
        for body in re.split(heading, part)[1:]:
            yield arch, re.match(r"\w+", body)[0], body


def main() -> None:
    faults, usage, tensor_core, seen = [], {}, {}, {}
    folder = out_dir(Path(sys.argv[1]))
    for included in re.findall(r'include_bytes!\("([^"]+)"\)', (folder / "fatbins.rs").read_text()):
        fatbin = folder / included
        for arch, name, body in kernels(tool("cuobjdump", "-res-usage", str(fatbin)), r"Function "):
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", body)}
            usage.setdefault(arch, {})[name] = numbers["REG"]
            if numbers["STACK"] or numbers["LOCAL"]:
                faults.append(f"{arch} {name}: {numbers} is local memory")
        for arch, name, code in kernels(tool("cuobjdump", "-sass", str(fatbin)), r"Function : "):
            seen.setdefault(arch, set()).add(name)
            if re.search(r"\b(LDL|STL)\b", code):
                faults.append(f"{arch} {name}: loads or stores local memory")
            match = re.match(r"kron_([a-z]+)_(f32|f16|bf16)_([rt])\d+$", name)
            if not match or (match[3] == "t" and match[1] != "merge"):
                continue
            faults += [f"{arch} {name}: no {need}" for need in NEEDS[match[1]] if not re.search(need, code)]
            if match[3] == "r":
                tensor_core[arch] = tensor_core.get(arch, 0) + 1
                if (match[2] == "bf16") != bool(re.search(r"HMMA\.\d+\.F32\.BF16", code)):
                    faults.append(f"{arch} {name}: the wrong type in HMMA")
    if set(seen) != ARCHS:
        faults.append(f"code for {sorted(seen)}, but it should be for {sorted(ARCHS)}")
    for arch, names in sorted(seen.items()):
        if names != set(usage[arch]) or len(names) != len(seen["sm_80"]):
            faults.append(f"{arch}: {len(names)} kernels with code, {len(usage[arch])} with a use of registers")
        if tensor_core.get(arch) != 48:
            faults.append(f"{arch}: {tensor_core.get(arch)} tensor-core kernels, but there are 4 × 2 × 6")
        most = max(usage[arch], key=usage[arch].get)
        print(f"{arch}: {len(names)} kernels, {tensor_core.get(arch)} on tensor cores; most registers: {usage[arch][most]}, {most}")
    if faults:
        sys.exit("\n".join(faults))
    print("no spill, no local memory; every kernel contains the instructions it needs")


if __name__ == "__main__":
    main()
