"""Calls in worker processes of multiprocessing, which are forked: none hangs, and each gives the same bits.

Usage: fork.py <libkron_capi.so>
"""

import ctypes
import hashlib
import multiprocessing
import random
import sys
from ctypes import byref, c_float, c_size_t

from check import F32, Backward, Forward, Op, Sizes

WORKERS = 120
ROWS, D, A, RANK = 512, 256, 8, 16

kron = ctypes.CDLL(sys.argv[1])
kron.kron_last_error.restype = ctypes.c_char_p
rng = random.Random(1)
op = Op(D, D, A, A, RANK, 1.5, 0.0)
x = (c_float * (ROWS * D))(*(rng.uniform(-1, 1) for _ in range(ROWS * D)))


def call(name, *arguments):
    status = getattr(kron, name)(None, byref(op), *arguments)
    assert status == 0, f"{name}: {status}: {kron.kron_last_error().decode()}"


def step(_):
    """The hash of a training step's outputs."""
    sizes = Sizes()
    call("kron_sizes", c_size_t(ROWS), byref(sizes))
    floats = lambda count: (c_float * max(1, count))()
    theta, t, grad, y, dx = map(floats, (sizes.theta, sizes.t, sizes.theta, ROWS * D, ROWS * D))
    theta[:] = [i % 7 / 8 - 0.375 for i in range(sizes.theta)]
    count = max(sizes.forward, sizes.backward)
    workspace = floats(count)
    p = lambda memory: ctypes.cast(memory, ctypes.c_void_p)
    forward = Forward(F32, 0, ROWS, p(x), D, p(y), D, p(theta), p(t), p(workspace), count, None)
    call("kron_forward", byref(forward))
    backward = Backward(F32, 0, ROWS, p(x), D, p(y), D, p(dx), D, p(theta), p(t), p(grad), p(workspace), count, None)
    call("kron_backward", byref(backward))
    return hashlib.sha256(b"".join(map(bytes, (y, dx, t, grad)))).hexdigest()


if __name__ == "__main__":
    want = step(None)
    # A new process for each task.
    with multiprocessing.get_context("fork").Pool(4, maxtasksperchild=1) as pool:
        got = pool.map_async(step, range(WORKERS), chunksize=1).get(timeout=300)
    assert len(got) == WORKERS and set(got) == {want}, f"{len(set(got) - {want})} other results"
    assert step(None) == want
    print("agrees")
