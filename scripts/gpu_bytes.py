#!/usr/bin/env python3
"""Compares the DRAM bytes that ncu counted with a plan's: each call may move at most 5 % more.

    gpu_bytes.py NCU PLAN

NCU is the output of ncu --csv --print-units base, PLAN the output of kron-kernels' example
`plan` for the same problem. Prints one line for each call: passed or FAILED, and the bytes of
each kernel. A call whose kernels ncu has not seen is FAILED.
"""

import csv
import re
import sys

MAX_RATIO = 1.05
METRICS = "dram__bytes_read.sum", "dram__bytes_write.sum"


def launches(path):
    """Returns (kernel, bytes read and written) of every launch, in order."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.startswith('"')]
    found = {}
    for row in csv.DictReader(lines):
        if row["Metric Name"] in METRICS:
            if row["Metric Unit"] != "byte":
                sys.exit(f"{row['Metric Name']} is in {row['Metric Unit']}, but --print-units base gives bytes")
            launch = found.setdefault(int(row["ID"]), [row["Kernel Name"].split("(")[0], 0])
            launch[1] += int(float(row["Metric Value"].replace(",", "")))
    return [found[i] for i in sorted(found)]


def plans(path):
    """Yields (call, its kernels, its bytes) of every plan."""
    with open(path, encoding="utf-8") as file:
        for part in file.read().strip().split("\n\n"):
            kernels = re.findall(r"^(kron_\w+) +grid", part, re.M)
            yield part.split("\n")[0], kernels, int(re.search(r"bytes, with scratch (\d+)", part)[1])


def main(counted, planned):
    seen, failed = launches(counted), False
    for call, kernels, model in plans(planned):
        starts = range(len(seen) - len(kernels) + 1)
        calls = [seen[i:i + len(kernels)] for i in starts if [k for k, _ in seen[i:i + len(kernels)]] == kernels]
        if not calls:
            failed = True
            print(f"{call}: FAILED, ncu has not seen {', '.join(kernels)}")
            continue
        worst = max(calls, key=lambda launch: sum(count for _, count in launch))
        total = sum(count for _, count in worst)
        right = total <= MAX_RATIO * model
        failed |= not right
        parts = " + ".join(f"{name} {count}" for name, count in worst)
        print(f"{call}: {'passed' if right else 'FAILED'}, {total / model:.3f} of the plan's {model} bytes: {parts}")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
