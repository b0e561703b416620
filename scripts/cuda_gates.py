"""Reads the fatbins of a build and checks their machine code: see cuda-gates.sh.

usage: cuda_gates.py MESSAGES LAUNCHES [--write]

MESSAGES is the output of cargo build --message-format json, LAUNCHES that of the example
`account`. --write puts the account's tables into docs/KERNELS.md instead of comparing them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from cuda_account import ISSUED, GROUP, NAME, SEGMENTS, Row, group_table, group_times, kernel_table, prediction_table, predictions, resident, segment_table, segment_times
from cuda_sass import Kernel

PAGE = Path(__file__).resolve().parent.parent / "docs/KERNELS.md"
# What a kernel of rank ≤ 32 has to reach at 60 % of issue, so that memory is its limit; those below are named.
LEAST_RATE, SLOWER = 16.5, {"kron_dy_bf16_n32": 15.5, "kron_dy_f16_n32": 15.5}
# The same of the kernels over segments in 16 bits, whose limit are instructions from about 16 rows for each adapter on.
LEAST_OVER_SEGMENTS = {"down": 6.5, "up": 11.5, "dy": 7.0, "grad": 6.5, "dx": 10.5}
# Least per cent of the byte floor without launches: pass → layer.
LEAST = {"forward": 85, "backward": 78}

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


def division(kernel: Kernel, arch: str):
    """The first instruction of a division in the main loop, or None; without a loop between the first and last HMMA."""
    if main := kernel.main_loop():
        code = [i for n in main[1] for i in kernel.blocks[n]]
    else:
        code = [i for block in kernel.blocks for i in block]
        at = [n for n, i in enumerate(code) if i[2].startswith("HMMA")]
        code = code[at[0] : at[-1]]
    # Older architectures also call the code for diverged warps.
    pattern = r"CALL|I2F|MUFU\.RCP" if arch == "sm_90a" else r"I2F|MUFU\.RCP"
    return next((i[2] for i in code if re.match(pattern, i[2])), None)


def segment_division(kernel: Kernel):
    """The first instruction of a division in the main loop of a kernel over segments, or None."""
    code = [i[2] for n in kernel.dense_loop()[1] for i in kernel.blocks[n]]
    return next((op for op in code if re.match(r"I2F|MUFU\.RCP", op)), None)


def late_load(kernel: Kernel) -> bool:
    """True if the main loop loads 16 bytes after its first store of 16 bytes."""
    _, nodes = kernel.main_loop()
    code = [i for n in sorted(nodes) for i in kernel.blocks[n]]
    first = next(n for n, i in enumerate(code) if re.match(STORE, i[2]))
    return any(re.match(LOAD, i[2]) for i in code[first:])


def out_of_turn(code: str, arch: str):
    """What is wrong with the kernel's wait for those before it, or None. From sm_90 on nothing is read or written before."""
    turns = [code.find(op) for op in ("PREEXIT", "ACQBULK")]
    if int(re.match(r"sm_(\d+)", arch)[1]) < 90:
        return "waits for the kernel before it" if max(turns) >= 0 else None
    if min(turns) < 0:
        return "does not wait for the kernel before it"
    early = re.search(r"\b(LDG|STG|LDGSTS|LD|ST|RED|ATOM|ATOMG)\.", code[: turns[1]])
    return f"{early[0]} before it waits for the kernel before it" if early else None


def account(codes: dict, usage: dict, launches: Path, write: bool) -> list:
    """Checks sm_90a's kernels against what the plans assume, and the tables of the page against the machine code."""
    lines = [line.split(",") for line in launches.read_text().splitlines()]
    faults, rows = [], {}
    for _, name, threads, shared, planned in (line for line in lines if line[0] == "kernel"):
        threads, shared = int(threads), int(shared)
        held = resident(usage[name], threads, shared)
        if held < int(planned):
            faults.append(f"{name}: {held} resident blocks with {usage[name]} registers, but the plan has {planned}")
        if SEGMENTS.match(name) or name == "kron_sort":
            rows[name] = Row(name, *codes[name].dense_step(), usage[name], threads, shared)
            if (match := SEGMENTS.match(name)) and match[2] != "f32":
                rate, least = ISSUED * rows[name].bytes_per_clock(), LEAST_OVER_SEGMENTS[match[1]]
                if rate < least:
                    faults.append(f"{name}: {rate:.1f} bytes a clock at 60 % of issue, but {least} are needed")
            continue
        if not NAME.match(name) and name != "kron_reduce":
            continue
        rows[name] = Row(name, *codes[name].step("_dy_" in name, GROUP), usage[name], threads, shared)
        match = NAME.match(name)
        if match and match[3] != "s" and int(match[4]) <= 32 and not (match[1] == "dy" and match[3] == "r"):
            rate, least = ISSUED * rows[name].bytes_per_clock(), SLOWER.get(name, LEAST_RATE)
            if rate < least:
                faults.append(f"{name}: {rate:.1f} bytes a clock at 60 % of issue, but {least} are needed")
    shown = sorted((r for n, r in rows.items() if "_bf16_" in n and "_s" not in n), key=lambda r: (r.name.split("_")[1], r.name[-0:].rstrip("0123456789"), int(NAME.match(r.name)[4])))
    found = predictions(rows, [line[1:] for line in lines if line[0] == "call"])
    for (name, layer, tokens), (own, _) in found.items():
        least = 75 if layer == "k/v" else LEAST[name]
        if tokens >= 4096 and own < least:
            faults.append(f"{name} of {layer} at {tokens} rows: {own:.0f} % of the byte floor, but {least} % are needed")
    over_segments = [r for n, r in rows.items() if SEGMENTS.match(n) and "_bf16_" in n]
    times = segment_times(rows, [line[1:] for line in lines if line[0] == "segments"])
    page = PAGE.read_text()
    tables = {"kernels": kernel_table(shown), "predictions": prediction_table(found)}
    tables["groups"] = group_table(group_times(rows, [line[1:] for line in lines if line[0] == "group"]))
    tables |= {"kernels over segments": kernel_table(over_segments), "segments": segment_table(times)}
    for title, table in tables.items():
        begin, end = f"<!-- account: {title} -->\n", "<!-- end -->"
        before, rest = page.split(begin)
        old, after = rest.split(end, 1)
        new = "\n".join(table) + "\n"
        if write:
            page = before + begin + new + end + after
        elif old != new:
            faults.append(f"docs/KERNELS.md has other {title} than the machine code: cuda_gates.py … --write\n{new}")
    if write:
        PAGE.write_text(page)
    return faults


def main() -> None:
    codes = {}
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
            if fault := out_of_turn(code, arch):
                faults.append(f"{arch} {name}: {fault}")
            if re.search(r"\b(LDL|STL)\b", code):
                faults.append(f"{arch} {name}: loads or stores local memory")
            if SEGMENTS.match(name) or name == "kron_sort":
                kernel = Kernel(code, "FFMA")
                if arch == "sm_90a":
                    codes[name] = kernel
                if name != "kron_sort" and (found := segment_division(kernel)):
                    faults.append(f"{arch} {name}: {found} between its products")
                continue
            match = re.match(r"kron_([a-z]+)_(f32|f16|bf16)_([rsmnt])\d+$", name)
            if match and match[3] != "t" or name == "kron_reduce":
                kernel = Kernel(code)
                if arch == "sm_90a":
                    codes[name] = kernel
            # At small m a block takes a step or two, after sums that divide.
            if match and match[3] not in "ts":
                if found := division(kernel, arch):
                    faults.append(f"{arch} {name}: {found} between its products")
                if match[1] == "dx" and match[3] == "r" and late_load(kernel):
                    faults.append(f"{arch} {name}: loads of old dX after a store")
            if not match or (match[3] == "t" and match[1] != "merge"):
                continue
            faults += [f"{arch} {name}: no {need}" for need in NEEDS[match[1]] if not re.search(need, code)]
            if match[3] != "t":
                tensor_core[arch] = tensor_core.get(arch, 0) + 1
                if (match[2] == "bf16") != bool(re.search(r"HMMA\.\d+\.F32\.BF16", code)):
                    faults.append(f"{arch} {name}: the wrong type in HMMA")
    if set(seen) != ARCHS:
        faults.append(f"code for {sorted(seen)}, but it should be for {sorted(ARCHS)}")
    for arch, names in sorted(seen.items()):
        if names != set(usage[arch]) or len(names) != len(seen["sm_80"]):
            faults.append(f"{arch}: {len(names)} kernels with code, {len(usage[arch])} with a use of registers")
        if tensor_core.get(arch) != 88:
            faults.append(f"{arch}: {tensor_core.get(arch)} tensor-core kernels, but there are 6 × 2 × 6 and 2 × 2 × 4")
        most = max(usage[arch], key=usage[arch].get)
        print(f"{arch}: {len(names)} kernels, {tensor_core.get(arch)} on tensor cores; most registers: {usage[arch][most]}, {most}")
    faults += account(codes, usage["sm_90a"], Path(sys.argv[2]), "--write" in sys.argv)
    if faults:
        sys.exit("\n".join(faults))
    print("no spill, no local memory; every kernel contains the instructions it needs")


if __name__ == "__main__":
    main()
