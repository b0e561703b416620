"""Libraries that let PyPI's torch start on a machine without CUDA.

    torch_stand_ins.py TORCH_LIB

torch is linked to CUDA's libraries, several gigabytes of wheels, of which a CPU
computes nothing with. Each is replaced by one that has the wanted names and finds no device.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

FOREIGN = re.compile(r"lib(cu|nccl|nvrtc|nvshmem_host)")
folder = Path(sys.argv[1])
libraries = set()  # by soname
home = {}  # version node → soname
wanted = defaultdict(set)  # version node, or "" → symbols


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


for so in folder.glob("lib*.so"):
    for line in lines("readelf", "-dW", str(so)):
        if name := re.search(r"NEEDED.*\[(.*)\]", line):
            libraries |= {name[1]} if FOREIGN.match(name[1]) else set()
    for line in lines("readelf", "-VW", str(so)):
        if name := re.search(r"File: (\S+)", line):
            file = name[1]
        elif (name := re.search(r"Name: (\S+)", line)) and "Flags" in line and FOREIGN.match(file):
            home[name[1]] = file
    for line in lines("nm", "-D", "--undefined-only", "--with-symbol-versions", str(so)):
        symbol, _, version = line.split()[-1].partition("@")
        wanted[version.lstrip("@")].add(symbol)



def stand_in(symbol):
    """100 is CUDA's "no device"."""
    if "String" in symbol or "ErrorName" in symbol:
        return f'const char *{symbol}(void) {{ return "no CUDA here"; }}\n'
    return f"long {symbol}(void) {{ return 100; }}\n"


# Which library a symbol without a version comes from is not written down: each gets all of them.
loose = {symbol for symbol in wanted[""] if re.match(r"(cu|nccl|nvrtc|nvshmem)", symbol)}

for soname in sorted(libraries):
    nodes = {node: wanted[node] for node, file in home.items() if file == soname and wanted[node]}
    source = "".join(map(stand_in, sorted(loose.union(*nodes.values()))))
    out, script = folder / soname, folder / f"{soname}.map"
    if out.exists():
        continue
    command = ["cc", "-shared", "-w", "-fno-builtin", "-x", "c", "-", "-o", str(out), f"-Wl,-soname,{soname}"]
    if nodes:
        script.write_text("".join(f"{node} {{ global: {'; '.join(sorted(s))}; }};\n" for node, s in nodes.items()))
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=source, text=True, check=True)
    script.unlink(missing_ok=True)
