"""The kernels' account: what the machine code of sm_90a lets them move, and the times that follow for an H200.

Model: a kernel takes as long as its busiest multiprocessor, which moves BYTES_PER_CLOCK and
issues WARP_INSTRUCTIONS_PER_CLOCK; a launch in a graph adds LAUNCH_US. Nothing here is measured
except the copy rate in BYTES_PER_CLOCK; caches hold nothing.
"""

import re

MULTIPROCESSORS, GHZ = 132, 1.98
BYTES_PER_CLOCK = 4300 / MULTIPROCESSORS / GHZ  # a device copy at 4.3 TB/s: 16.5
ISSUE, ISSUED = 4, 0.6  # warp instructions a clock, and the part of them that code like this gets
LAUNCH_US = 1.5  # a further kernel in a CUDA graph, an estimate
REGISTERS, SHARED, WARPS, GROUP = 65536, 227 << 10, 64, 8
# Bytes of activations in one step (in one block of `up`) of a kernel of rank r.
STEP = {
    "down": lambda r: 64 * 64 * 2,
    "up": lambda r: 64 * 256 * 2 * 2,
    "dy": lambda r: (64 if r <= 32 else 32) * 128 * 2,
    "dx": lambda r: 64 * 128 * 2 * 3,
}
# The same of the kernels over segments, of a block's eight warps: two rows of 256 columns each.
SEGMENT_STEP = {"down": 8 << 10, "up": 16 << 10, "dy": 8 << 10, "grad": 8 << 10, "dx": 16 << 10}
SEGMENTS = re.compile(r"kron_([a-z]+)_(f32|f16|bf16)_segments$")
NAME = re.compile(r"kron_(down|up|dy|dx)_(f16|bf16)_([rsmn])(\d+)$")


def resident(registers: int, threads: int, shared: int) -> int:
    """Blocks of a kernel that a multiprocessor of sm_90a holds."""
    warps = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    return min(by_registers, WARPS // warps, 32, SHARED // (shared + 1024))


class Row:
    """A kernel's line of the account."""

    def __init__(self, name: str, step: int, outside: int, registers: int, threads: int, shared: int):
        self.name, self.step, self.outside, self.registers, self.threads = name, step, outside, registers, threads
        self.warps, self.resident = threads // 32, resident(registers, threads, shared)
        match, segments = NAME.match(name), SEGMENTS.match(name)
        self.bytes = STEP[match[1]](int(match[4])) if match else SEGMENT_STEP[segments[1]] if segments else 0

    def per_16(self) -> float:
        """Warp instructions of a block for each 16 bytes of DRAM traffic."""
        return (self.step or self.outside) * self.warps * 16 / self.bytes

    def bytes_per_clock(self) -> float:
        """Bytes that instructions leave time for, in a clock of a multiprocessor at perfect issue."""
        return ISSUE * 16 / self.per_16()


def kernel_table(rows: list) -> list:
    lines = [
        "| kernel | instructions of a warp in a step | outside | per 16 bytes | registers | resident blocks | bytes a clock and multiprocessor | at 60 % of issue |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        rate = row.bytes_per_clock()
        step = row.step or row.outside
        outside = row.outside if row.step else 0
        lines.append(
            f"| `{row.name}` | {step} | {outside} | {row.per_16():.1f} | {row.registers} | {row.resident} | {rate:.1f} | {ISSUED * rate:.1f} |"
        )
    return lines


def microseconds(row: Row, blocks: int, threads: int, longest: int, steps: int, moved: int) -> float:
    """Time of one kernel without its launch."""
    turns = -(-blocks // MULTIPROCESSORS)
    instructions = turns * (row.outside + longest * row.step) * (threads // 32)
    # The busiest multiprocessor's part of the traffic.
    mean = steps / MULTIPROCESSORS if row.step else blocks / MULTIPROCESSORS
    busiest = turns * longest if row.step else turns
    issue = instructions / (ISSUE * ISSUED)
    memory = moved / MULTIPROCESSORS * max(1, busiest / mean) / BYTES_PER_CLOCK
    return max(issue, memory) / GHZ / 1000


def totals(calls: list, width: int, own) -> dict:
    """Key → bytes of the floor, and µs without and with the launches.

    A call is its key, `width` fields long, then the floor, a kernel and its numbers, whose time is own(kernel, numbers).
    """
    found = {}
    for call in calls:
        key = tuple(int(field) if field.isdigit() else field for field in call[:width])
        floor, kernel, *numbers = call[width:]
        _, kernels, launches = found.get(key, (0, 0, 0))
        found[key] = int(floor), kernels + own(kernel, [int(n) for n in numbers]), launches + LAUNCH_US
    return {key: (floor, kernels, kernels + launches) for key, (floor, kernels, launches) in found.items()}


def predictions(rows: dict, calls: list) -> dict:
    """(pass, layer, rows) → per cent of the byte floor, without and with the launches."""
    times = totals(calls, 3, lambda kernel, numbers: microseconds(rows[kernel], *numbers))
    return {key: tuple(100 * (floor / 4.3e6) / us for us in both) for key, (floor, *both) in times.items()}


def copy_microseconds(blocks: int, moved: int) -> float:
    """The same of a kernel that only carries elements from one place to another."""
    turns = -(-blocks // MULTIPROCESSORS)
    return moved / MULTIPROCESSORS * max(1, turns * MULTIPROCESSORS / blocks) / BYTES_PER_CLOCK / GHZ / 1000


def group_times(rows: dict, calls: list) -> dict:
    """(pass, layers, rows, way) → totals."""
    def own(kernel, numbers):
        return microseconds(rows[kernel], *numbers) if kernel in rows else copy_microseconds(numbers[0], numbers[-1])
    return totals(calls, 4, own)


def group_table(found: dict) -> list:
    lines = [
        "| call | rows | MB | floor | joined: kernels | with launches | one by one: kernels | with launches | ratio | with launches |",
        "|---|" + "--:|" * 9,
    ]
    for (name, layers, tokens, way), (floor, own, all) in found.items():
        if way == "alone":
            continue
        _, their_own, their_all = found[name, layers, tokens, "alone"]
        cells = f"{floor / 1e6:.1f} | {floor / 4.3e6:.1f} µs | {own:.1f} µs | {all:.1f} µs | {their_own:.1f} µs | {their_all:.1f} µs"
        lines.append(f"| {name}, {layers} | {tokens} | {cells} | {their_own / own:.2f} | {their_all / all:.2f} |")
    return lines


def segment_times(rows: dict, calls: list) -> dict:
    """(pass, method, adapters, rows of each) → totals."""
    def own(kernel, numbers):
        blocks, threads, steps, moved = numbers
        return microseconds(rows[kernel], blocks, threads, steps, steps * blocks, moved)
    return totals(calls, 4, own)


def segment_table(found: dict) -> list:
    lines = [
        "| call | adapters | rows of each | MB | floor | kernels | with launches | LoRA-8: MB | floor | kernels | with launches | ratio of bytes | of kernels |",
        "|---|" + "--:|" * 12,
    ]
    for (name, method, adapters, each), ours in found.items():
        if method == "LoRA":
            continue
        theirs = found[name, "LoRA", adapters, each]
        cells = ["{:.2f} | {:.1f} µs | {:.1f} µs | {:.1f} µs".format(f / 1e6, f / 4.3e6, own, all) for f, own, all in (ours, theirs)]
        ratios = f"{theirs[0] / ours[0]:.1f} | {theirs[1] / ours[1]:.1f}"
        lines.append(f"| {name} | {adapters} | {each} | {cells[0]} | {cells[1]} | {ratios} |")
    return lines


def prediction_table(found: dict) -> list:
    tokens = sorted({key[2] for key in found})
    lines = ["| call | " + " | ".join(f"{n} rows" for n in tokens) + " |", "|---|" + "--:|" * len(tokens)]
    for name, layer in dict.fromkeys(key[:2] for key in found):
        cells = ["{:.0f} % ({:.0f} %)".format(*found[name, layer, n]) for n in tokens]
        lines.append(f"| {name}, {layer} | " + " | ".join(cells) + " |")
    return lines
