"""Reads a kernel's machine code: its loops, and the instructions that a warp executes in them.

What a warp executes is taken from above: the longest path through the basic blocks. The path
leaves out dropout (Philox's constants) and 64-bit divisions (calls), together with the loops
around them; an inner loop counts once.
"""

import re
from functools import cache

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.M)
# Philox4x32's multipliers and key increments, as immediates of either sign.
PHILOX = re.compile(r"0x(d2511f53|2daee0ad|cd9e8d57|326172a9|9e3779b9|61c88647|bb67ae85|4498517b)", re.I)


class Kernel:
    """The basic blocks of one kernel's machine code, and the edges between them."""

    def __init__(self, text: str, work: str = "HMMA"):
        """`work` is the instruction for which the kernel's loops exist."""
        self.work = work
        code = [(int(at, 16), guard, op, args) for at, guard, op, args in INSTRUCTION.findall(text)]
        while code[-1][2] in ("NOP", "BRA"):
            code.pop()  # padding behind the code
        index = {at: i for i, (at, *_) in enumerate(code)}
        leaders, jumps = {0}, {}
        for i, (_, guard, op, args) in enumerate(code):
            if op.split(".")[0] not in ("BRA", "EXIT", "RET", "BRX", "JMP"):
                continue
            # BRA.DIV leads to code for warps whose lanes have diverged.
            target = re.search(r"0x([0-9a-f]+)\s*$", args) if op.startswith("BRA") and "DIV" not in op else None
            to = [index[int(target[1], 16)]] if target and int(target[1], 16) in index else []
            jumps[i] = to, bool(guard) or "DIV" in op or re.match(r"!?U?P\d", args) is not None
            leaders |= {*to, i + 1}
        starts = sorted(l for l in leaders if l < len(code))
        ends = [*starts[1:], len(code)]
        block_at = {start: n for n, start in enumerate(starts)}
        self.blocks = [code[a:b] for a, b in zip(starts, ends)]
        self.next = []
        for n, end in enumerate(ends):
            to, through = jumps.get(end - 1, ([], True))
            self.next.append({block_at[t] for t in to} | ({n + 1} if through and n + 1 < len(starts) else set()))
        self.all = frozenset(range(len(self.blocks)))
        self.cold = frozenset(n for n in self.all if any(PHILOX.search(i[3]) or i[2].startswith("CALL") for i in self.blocks[n]))
        self.cold |= self.cold_loops(self.all, 0)

    def cold_loops(self, nodes: frozenset, entry: int) -> frozenset:
        """Blocks of inner loops with a cold block and none of the kernel's work."""
        cold = frozenset()
        for header, loop in self.loops(nodes, entry):
            if loop & self.cold and not self.with_op(loop, self.work):
                cold |= loop
            elif len(loop) > 1:
                cold |= self.cold_loops(loop, header)
        return cold

    def with_op(self, nodes, pattern: str) -> frozenset:
        return frozenset(n for n in nodes if any(re.match(pattern, op) for _, _, op, _ in self.blocks[n]))

    @cache
    def components(self, nodes: frozenset, entry: int) -> tuple:
        """Strongly connected components of what `entry` reaches, without edges back to it, in topological order."""
        order, low, stack, open_, out = {}, {}, [], set(), []
        edges = lambda n: iter([m for m in sorted(self.next[n]) if m in nodes and m != entry])

        def begin(n):
            order[n] = low[n] = len(order)
            stack.append(n), open_.add(n)
            return n, edges(n)

        work = [begin(entry)]
        while work:
            n, successors = work[-1]
            for m in successors:
                if m not in order:
                    work.append(begin(m))
                    break
                if m in open_:
                    low[n] = min(low[n], order[m])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[n])
                if low[n] == order[n]:
                    component = set()
                    while n not in component:
                        component.add(stack.pop())
                    open_ -= component
                    out.append(frozenset(component))
        return tuple(reversed(out))

    def loops(self, nodes: frozenset, entry: int):
        """Yields (header, blocks) of the outermost loops of a region that starts at `entry`."""
        for component in self.components(nodes, entry):
            n = min(component)
            if len(component) > 1 or (n in self.next[n] and n != entry):
                entered = [m for m in component for o in nodes - component if m in self.next[o]]
                yield min(entered, default=n), component

    @cache
    def longest(self, nodes: frozenset, entry: int, closes: bool, skip=frozenset(), leave=frozenset()):
        """Instructions on the longest path from `entry`, back to it if `closes`, else to an exit; None if
        there is no such path. Takes no block of `leave`, and counts none of `skip`."""
        nodes -= (self.cold | leave) - {entry}
        headers = {loop: header for header, loop in self.loops(nodes, entry)}
        best = {}
        for component in reversed(self.components(nodes, entry)):
            after = set().union(*(self.next[n] for n in component))
            ahead = [best[m] for m in after - component if m in best]
            if entry in after if closes else not after or any(self.ends(n) for n in component):
                ahead.append(0)
            if not ahead:
                continue
            if component <= skip:
                own = 0
            elif component in headers:
                own = self.longest(component, headers[component], True, skip, leave) or 0
            else:
                own = sum(op != "NOP" for n in component for _, _, op, _ in self.blocks[n])
            best |= dict.fromkeys(component, own + max(ahead))
        return best.get(entry)

    def ends(self, n: int) -> bool:
        return self.blocks[n][-1][2] in ("EXIT", "RET")

    def main_loop(self):
        """The innermost loop around all HMMA of some loop, as (header, blocks); None without one."""
        found, region = None, (0, self.all)
        while True:
            inner = [loop for loop in self.loops(region[1], region[0]) if self.with_op(loop[1], "HMMA")]
            if len(inner) != 1 or (found and self.with_op(found[1], "HMMA") != self.with_op(inner[0][1], "HMMA")):
                return found
            found = region = inner[0]

    def dense_loops(self, least: int = 100) -> list:
        """(depth, header, blocks) of the loops with at least `least` instructions of the kernel's work and no such loop inside."""
        found = []

        def descend(header, nodes, depth):
            dense = [loop for loop in self.loops(nodes, header) if self.count(loop[1]) >= least]
            for inner, blocks in dense:
                if len(blocks) == 1 or not descend(inner, blocks, depth + 1):
                    found.append((depth, inner, blocks))
            return dense

        descend(0, self.all, 0)
        return found

    def dense_loop(self):
        """The dense loop in the fewest others, and of several the longest, as (header, blocks); None without one."""
        loops = sorted(self.dense_loops(), key=lambda loop: (loop[0], -(self.longest(loop[2], loop[1], True) or 0)))
        return loops[0][1:] if loops else None

    def dense_step(self):
        """Instructions of a warp in one step of the dense loop, and outside it on a path without another outermost dense loop and without edges."""
        main = self.dense_loop()
        if main is None:
            return 0, self.longest(self.all, 0, False)
        header, nodes = main
        others = [blocks for _, blocks in self.loops(self.all, 0) if self.count(blocks) >= 100 and not nodes <= blocks]
        leave = self.edges().union(*others)
        return self.longest(nodes, header, True, leave=leave), self.longest(self.all, 0, False, nodes, leave)

    def edges(self) -> frozenset:
        """Blocks that load a tile at an edge: with many loads, and a condition on each."""
        guarded = lambda n: sum(op.startswith("LDG") and guard != "" for _, guard, op, _ in self.blocks[n])
        return frozenset(n for n in self.all if guarded(n) >= 32)

    def count(self, nodes) -> int:
        return sum(op.startswith(self.work) for n in nodes for _, _, op, _ in self.blocks[n])

    def step(self, roles: bool, group: int):
        """Instructions of a warp in one step of the main loop, and outside it; without a loop all are outside.

        With `roles` half of the warps leave out the HMMA that a path can avoid, and one step of `group` has
        global stores and the copies after the first."""
        main = self.main_loop()
        if main is None:
            return 0, self.longest(self.all, 0, False)
        header, nodes = main
        outside = self.longest(self.all, 0, False, nodes)
        whole = self.longest(nodes, header, True)
        if not roles:
            return whole, outside
        optional = frozenset(n for n in self.with_op(nodes, "HMMA") if self.longest(nodes, header, True, leave=frozenset({n})) is not None)
        per_tile = self.with_op(nodes, "STG") | frozenset(sorted(self.with_op(nodes, "LDGSTS"))[1:])
        usual = self.longest(nodes, header, True, leave=per_tile)
        other = self.longest(nodes, header, True, leave=per_tile | optional)
        return round((usual + (whole - usual) / group + other) / 2), outside
