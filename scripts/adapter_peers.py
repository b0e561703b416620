#!/usr/bin/env python3
"""Kron-LoRA on our CPU kernels beside LoRA on PyTorch's products, the adapter alone, in one process.

    adapter_peers.py LIBRARY [--threads 1] [--rounds 7] [--rows 1,16,256,2048] [--layers q,kv,gate_up,down]
                     [--dtypes float32,bfloat16] [--out adapter-peers.csv]

LIBRARY is libkron_capi.so. Forward is Y += adapter(X), backward adds to dX and to the gradient, on
both sides; LoRA is two products forward and four backward, into memory that is there (`addmm_`).
Every result is compared with float64 first; then both are timed in turn, each sample at least 5 ms of calls.
"""

import argparse
import csv
import ctypes
import os
import statistics
import time

import torch

from gpu_peers import A_IN, A_OUT, RANK, SCALE, Ours, sum_error

# Mistral-7B's layers as in benches/shapes.toml: (d_out, d_in).
LAYERS = {"q": (4096, 4096), "kv": (1024, 4096), "gate_up": (14336, 4096), "down": (4096, 14336)}
SAMPLE_SECONDS = 5e-3


class Torch:
    """LoRA as a trainer writes it by hand, with the fewest passes over memory."""

    def __init__(self, d_out, d_in, dtype):
        self.b = (torch.randn(d_out, RANK) / RANK**0.5).to(dtype)
        self.c = (torch.randn(RANK, d_in) / d_in**0.5).to(dtype)
        self.gb, self.gc = torch.zeros_like(self.b), torch.zeros_like(self.c)

    def forward(self, x, y):
        self.t = x @ self.c.T
        y.addmm_(self.t, self.b.T, alpha=SCALE)

    def backward(self, x, dy, dx):
        dt = (dy @ self.b).mul_(SCALE)
        self.gb.addmm_(dy.T, self.t, alpha=SCALE)
        self.gc.addmm_(dt.T, x)
        dx.addmm_(dt, self.c)

    def delta(self, x):
        return SCALE * (x @ self.c.double().T) @ self.b.double().T

    def delta_back(self, dy):
        return SCALE * (dy @ self.b.double()) @ self.c.double()


class Kron:
    """Our kernels through the C library."""

    def __init__(self, library, d_out, d_in, rows):
        self.a = torch.randn(A_OUT, A_IN)
        self.b = torch.randn(d_out // A_OUT, RANK) / RANK**0.5
        self.c = torch.randn(RANK, d_in // A_IN) / d_in**0.5
        self.theta = torch.cat([f.flatten() for f in (self.a, self.b, self.c)])
        self.grad = torch.zeros_like(self.theta)
        self.ours = Ours(library, torch.device("cpu"), d_out, d_in, rows, False)

    def forward(self, x, y):
        self.ours.forward(x, self.theta, y)

    def backward(self, x, dy, dx):
        self.ours.backward(x, self.theta, dy, dx, self.grad)

    def delta(self, x):
        t = x.view(len(x), A_IN, -1) @ self.c.double().T
        return SCALE * ((self.a.double() @ t) @ self.b.double().T).reshape(len(x), -1)

    def delta_back(self, dy):
        v = dy.view(len(dy), A_OUT, -1) @ self.b.double()
        return SCALE * ((self.a.double().T @ v) @ self.c.double()).reshape(len(dy), -1)


def check(name, got, before, want, terms):
    """Compares a sum in place with float64: four roundings of the largest value, and float32's in a sum of many."""
    want = want + before.double()
    error = (got.double() - want).abs().max() / want.abs().max()
    if not error <= 4 * torch.finfo(got.dtype).eps + 4 * sum_error(terms):
        raise SystemExit(f"{name}: relative error {error:.2e}")


def sample(work):
    """Seconds of a call: the mean of as many as take SAMPLE_SECONDS."""
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        seconds = time.perf_counter() - start
        if seconds >= SAMPLE_SECONDS:
            return seconds / calls


def cell(options, layer, dtype, rows):
    d_out, d_in = LAYERS[layer]
    x, dx = (torch.randn(rows, d_in).to(dtype) for _ in range(2))
    y, dy = (torch.randn(rows, d_out).to(dtype) for _ in range(2))
    arms = {"torch": Torch(d_out, d_in, dtype), "kron": Kron(options.library, d_out, d_in, rows)}
    for name, arm in arms.items():
        y1, dx1 = y.clone(), dx.clone()
        arm.forward(x, y1)
        arm.backward(x, dy, dx1)
        check(f"{name} {layer} {rows} forward", y1, y, arm.delta(x.double()), d_in)
        check(f"{name} {layer} {rows} backward", dx1, dx, arm.delta_back(dy.double()), d_out)
    # Repeated sums grow, and the time does not depend on values that are finite; small gradients keep them so.
    dy.mul_(1e-3)

    def both(arm):
        arm.forward(x, y)
        arm.backward(x, dy, dx)

    passes = {"forward": lambda arm: arm.forward(x, y), "both": both}
    samples = {(name, what): [] for name in arms for what in passes}
    for round_ in range(options.rounds):
        for name in list(arms) if round_ % 2 else list(arms)[::-1]:
            for what, work in passes.items():
                samples[name, what].append(sample(lambda: work(arms[name])))
        y.normal_()
        dx.normal_()
    row = {"layer": layer, "dtype": str(dtype).removeprefix("torch."), "rows": rows, "threads": options.threads}
    for what in passes:
        times = {name: samples[name, what] for name in arms}
        ratios = [t / k for t, k in zip(times["torch"], times["kron"])]
        row |= {f"{what}_{name}_s": f"{statistics.median(t):.4g}" for name, t in times.items()}
        row |= {f"{what}_ratio": f"{statistics.median(ratios):.3f}", f"{what}_ratio_least": f"{min(ratios):.3f}"}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--rows", default="1,16,256,2048", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--layers", default="q,kv,gate_up,down", type=lambda text: text.split(","))
    parser.add_argument("--dtypes", default="float32,bfloat16", type=lambda text: text.split(","))
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, rank {RANK}, A {A_OUT}×{A_IN}, {options.threads} threads; LoRA's time / Kron-LoRA's\n")
    print("| layer | dtype | rows | forward | forward + backward |\n|---|---|--:|--:|--:|")
    rows = []
    for layer in options.layers:
        for dtype in options.dtypes:
            for count in options.rows:
                row = cell(options, layer, getattr(torch, dtype), count)
                rows.append(row)
                print(f"| {layer} | {dtype} | {count} | {row['forward_ratio']} | {row['both_ratio']} |", flush=True)
    for what in "forward", "both":
        ratios = [float(row[f"{what}_ratio"]) for row in rows]
        print(f"{what}: geometric mean {statistics.geometric_mean(ratios):.2f}, least {min(ratios):.2f}")
    if options.out:
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
