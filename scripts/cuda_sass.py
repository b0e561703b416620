"""Reads machine code: the loops of a kernel and the instructions that a warp executes in them.

A warp's path through a kernel is bounded by the longest path that avoids dropout (Philox's
constants), calls (64-bit division) and code for diverged warps. An inner loop counts once:
the kernels' main loops contain none but those that docs/KERNELS.md names.
"""

import re
from functools import cache

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.M)
# Philox4x32's multipliers and key increments, as signed immediates or not.
PHILOX = re.compile(r"0xd2511f53|0x2daeE0ad|0xcd9e8d57|0x326172a9|0x9e3779b9|0x61c88647|0xbb67ae85|0x4498517b", re.I)


class Kernel:
    """Basic blocks of one kernel's machine code."""

    def __init__(self, text: str):
        self.code = [(int(at, 16), guard or "", op, args) for at, guard, op, args in INSTRUCTION.findall(text)]
        while len(self.code) > 1 and self.code[-1][2] in ("NOP", "BRA"):
            self.code.pop()  # padding behind the code
        index = {at: i for i, (at, *_) in enumerate(self.code)}
        target = lambda args: next((index[a] for a in (int(t, 16) for t in re.findall(r"0x([0-9a-f]+)", args)[-1:]) if a in index), None)
        leaders, jumps = {0}, {}
        for i, (_, guard, op, args) in enumerate(self.code):
            name = op.split(".")[0]
            if name in ("BRA", "EXIT", "RET", "BRX", "JMP"):
                to = [] if name != "BRA" or op.startswith("BRA.DIV") else [t for t in [target(args)] if t is not None]
                through = bool(guard) or op.startswith("BRA.DIV") or re.match(r"!?U?P\d", args) is not None
                jumps[i] = (to, through)
                leaders |= {*to, i + 1}
        self.starts = sorted(l for l in leaders if l < len(self.code))
        block_of = {start: n for n, start in enumerate(self.starts)}
        ends = [*self.starts[1:], len(self.code)]
        self.blocks = [self.code[a:b] for a, b in zip(self.starts, ends)]
        self.next = []
        for n, end in enumerate(ends):
            to, through = jumps.get(end - 1, ([], True))
            self.next.append({block_of[t] for t in to} | ({n + 1} if through and n + 1 < len(self.starts) else set()))
        self.cold = {n for n, block in enumerate(self.blocks) if any(PHILOX.search(i[3]) or i[2].startswith("CALL") for i in block)}
        self.chill(frozenset(range(len(self.blocks))), 0)

    def chill(self, nodes: frozenset, entry: int) -> None:
        """Takes an inner loop with a cold block and no HMMA as cold altogether."""
        for header, loop in self.loops(nodes, entry):
            if not self.has(loop, "HMMA") and loop & self.cold:
                self.cold |= loop
            elif len(loop) > 1:
                self.chill(loop, header)

    def count(self, node: int) -> int:
        return sum(op != "NOP" for _, _, op, _ in self.blocks[node])

    def has(self, nodes, pattern: str) -> bool:
        return any(re.match(pattern, op) for n in nodes for _, _, op, _ in self.blocks[n])

    def components(self, nodes: frozenset, entry: int) -> list:
        """Strongly connected components without the edges back to `entry`, in topological order."""
        order, low, stack, on, out = {}, {}, [], set(), []
        edges = lambda n: [m for m in self.next[n] if m in nodes and m != entry]

        def visit(root):
            work = [(root, iter(edges(root)))]
            order[root] = low[root] = len(order)
            stack.append(root), on.add(root)
            while work:
                n, successors = work[-1]
                for m in successors:
                    if m not in order:
                        order[m] = low[m] = len(order)
                        stack.append(m), on.add(m)
                        work.append((m, iter(edges(m))))
                        break
                    if m in on:
                        low[n] = min(low[n], order[m])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[n])
                    if low[n] == order[n]:
                        component = set()
                        while n not in component:
                            component.add(stack.pop())
                        on.difference_update(component)
                        out.append(frozenset(component))

        visit(entry)
        return out[::-1]

    def loops(self, nodes=None, entry: int = 0):
        """Yields (header, nodes) of the outermost loops of a region."""
        nodes = nodes or frozenset(range(len(self.blocks)))
        for component in self.components(nodes, entry):
            if len(component) > 1 or any(n in self.next[n] for n in component if n != entry):
                outside = nodes - component
                headers = [m for m in component for n in outside if m in self.next[n]]
                yield min(headers, default=min(component)), component

    @cache
    def longest(self, nodes: frozenset, entry: int, closes: bool, without=frozenset()) -> int:
        """Instructions on the longest path from `entry`: back to it, or to an exit."""
        allowed = nodes - self.cold if entry not in self.cold else nodes
        loops = {n: (h, c) for h, c in self.loops(allowed, entry) for n in c}
        best, done = {}, {}
        for component in self.components(allowed, entry):
            ahead = max((best[m] for n in component for m in self.next[n] if m in best and m not in component), default=None)
            ends = any(entry in self.next[n] for n in component) if closes else not set().union(*(self.next[n] for n in component)) & allowed - component
            done[component] = (ahead, ends)
        # Components come in topological order, so the sums run from the end.
        for component in reversed(self.components(allowed, entry)):
            ahead = max((best[m] for n in component for m in self.next[n] if m in best and m not in component), default=None)
            ends = any(entry in self.next[n] for n in component) if closes else done[component][1]
            if ahead is None and not ends:
                continue
            node = next(iter(component))
            if component <= without:
                own = 0
            elif node in loops:
                own = self.longest(component, loops[node][0], True, without)
            else:
                own = self.count(node)
            for n in component:
                best[n] = own + max(ahead or 0, 0)
        return best.get(entry, 0)

    def main_loop(self):
        """The innermost loop with all HMMAs of a loop, or None: (header, nodes)."""
        found, nodes, entry = None, frozenset(range(len(self.blocks))), 0
        while inner := [l for l in self.loops(nodes, entry) if self.has(l[1], "HMMA")]:
            if found and len(inner) > 1:
                break
            found = max(inner, key=lambda l: len(l[1]))
            if inner and sum(self.has([n], "HMMA") for n in found[1]) < sum(self.has([n], "HMMA") for n in nodes) and found is not inner[0]:
                break
            entry, nodes = found
        return found

    def step(self):
        """(instructions of a step of the main loop, those outside it)."""
        everything, main = frozenset(range(len(self.blocks))), self.main_loop()
        if main is None:
            return 0, self.longest(everything, 0, False)
        header, nodes = main
        return self.longest(nodes, header, True), self.longest(everything, 0, False, nodes)
