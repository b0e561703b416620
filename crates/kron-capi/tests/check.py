"""Forward, backward and merge through ctypes against plain loops.

Usage: check.py <libkron_capi.so> <device>, where "host" is the host and a
number a CUDA device, whose memory the driver brings; the rest is plain python3.
The activations are bfloat16, packed by hand.
"""

import ctypes
import random
import struct
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p

ABI = 1
F32, F16, BF16 = range(3)


class Device(Structure):
    _fields_ = [("device", c_int32), ("stream", c_void_p)]


class Op(Structure):
    _fields_ = [(n, c_size_t) for n in ("d_out", "d_in", "a_out", "a_in", "rank")] + [
        ("scale", c_float), ("dropout", c_float)]


class Key(Structure):
    _fields_ = [("seed", c_uint64), ("offset", c_uint64)]


class Sizes(Structure):
    _fields_ = [(n, c_size_t) for n in ("theta", "t", "forward", "backward", "merge")]


class Forward(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("y", c_void_p), ("y_stride", c_size_t),
                ("theta", c_void_p), ("t", c_void_p),
                ("workspace", c_void_p), ("workspace_len", c_size_t), ("key", POINTER(Key))]


class Backward(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("dy", c_void_p), ("dy_stride", c_size_t),
                ("dx", c_void_p), ("dx_stride", c_size_t), ("theta", c_void_p), ("t", c_void_p),
                ("grad", c_void_p), ("workspace", c_void_p), ("workspace_len", c_size_t), ("key", POINTER(Key))]


class Merge(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t), ("first_row", c_size_t),
                ("w", c_void_p), ("w_stride", c_size_t), ("theta", c_void_p),
                ("workspace", c_void_p), ("workspace_len", c_size_t)]


class Adapter(Structure):
    _fields_ = [("op", Op), ("theta", c_void_p)]


class Term(Structure):
    _fields_ = [("op", Op), ("theta", c_void_p), ("output", c_size_t), ("key", POINTER(Key))]


class ManySizes(Structure):
    _fields_ = [(n, c_size_t) for n in ("t", "forward", "backward")]


class ForwardSegments(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("y", c_void_p), ("y_stride", c_size_t),
                ("table", POINTER(c_int32)), ("t", c_void_p),
                ("workspace", c_void_p), ("workspace_len", c_size_t), ("key", POINTER(Key))]


class BackwardSegments(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("dy", c_void_p), ("dy_stride", c_size_t),
                ("dx", c_void_p), ("dx_stride", c_size_t), ("table", POINTER(c_int32)), ("t", c_void_p),
                ("grads", POINTER(c_void_p)), ("workspace", c_void_p), ("workspace_len", c_size_t),
                ("key", POINTER(Key))]


class GroupY(Structure):
    _fields_ = [("y", c_void_p), ("y_stride", c_size_t), ("accumulate", c_uint32)]


class ForwardGroup(Structure):
    _fields_ = [("dtype", c_uint32), ("rows", c_size_t), ("x", c_void_p), ("x_stride", c_size_t),
                ("ys", POINTER(GroupY)), ("outputs", c_size_t), ("t", c_void_p),
                ("workspace", c_void_p), ("workspace_len", c_size_t)]


class GroupDy(Structure):
    _fields_ = [("dy", c_void_p), ("dy_stride", c_size_t)]


class BackwardGroup(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("dys", POINTER(GroupDy)), ("outputs", c_size_t),
                ("dx", c_void_p), ("dx_stride", c_size_t), ("t", c_void_p), ("grads", POINTER(c_void_p)),
                ("workspace", c_void_p), ("workspace_len", c_size_t)]


def bf16(value):
    """Bits of a number, rounded to nearest even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def wide(bits):
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


class Host:
    """Numbers in the host's memory, by ctypes."""

    def floats(self, values):
        return (c_float * max(1, len(values)))(*values)

    def pack(self, values):
        return (c_uint16 * len(values))(*map(bf16, values))

    def pointer(self, memory):
        return ctypes.cast(memory, c_void_p)

    def read(self, memory):
        """The numbers of `floats`, or the bits of `pack`."""
        return list(memory)


class Driver:
    """Numbers in a CUDA device's memory, by the driver."""

    def __init__(self, number):
        self.cuda, self.context = ctypes.CDLL("libcuda.so.1"), c_void_p()
        device = c_int32()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), int(number))
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), device)
        self.call("cuCtxSetCurrent", self.context)

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        assert code == 0, f"{name}: error {code}"

    def upload(self, values):
        start = c_uint64()
        self.call("cuMemAlloc_v2", byref(start), c_size_t(ctypes.sizeof(values)))
        self.call("cuMemcpyHtoD_v2", start, values, c_size_t(ctypes.sizeof(values)))
        return start, values

    def floats(self, values):
        return self.upload(Host().floats(values))

    def pack(self, values):
        return self.upload(Host().pack(values))

    def pointer(self, memory):
        return c_void_p(memory[0].value)

    def read(self, memory):
        # The calls were queued on the default stream, which a copy to the host waits for.
        start, values = memory
        self.call("cuMemcpyDtoH_v2", values, start, c_size_t(ctypes.sizeof(values)))
        return list(values)

    def captured(self, work):
        """Calls `work` with a stream whose work is captured in a graph, then runs the graph."""
        stream, graph, ready = c_void_p(), c_void_p(), c_void_p()
        self.call("cuStreamCreate", byref(stream), 1)
        self.call("cuStreamBeginCapture_v2", stream, 0)
        work(stream)
        self.call("cuStreamEndCapture", stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
        self.call("cuGraphLaunch", ready, stream)
        self.call("cuStreamSynchronize", stream)


def memory_of(where):
    """The memory that a place computes in: an emulated device, below 0, has the host's."""
    if where == "host" or int(where) < 0:
        return Host()
    try:
        return Driver(where)
    except OSError as error:
        sys.exit(print(f"skipped: {error}"))


def close(what, got, want, tolerance):
    size = max(map(abs, want))
    worst = max(abs(g - w) for g, w in zip(got, want, strict=True))
    assert size > 0.1 and worst <= tolerance * size, f"{what}: {worst} of {size}"


class Many:
    """Adapters of one shape, and calls over rows of one of them."""

    def __init__(self, call, memory, numbers, op, count, n, adapters):
        self.call, self.memory, self.op, self.count, self.n = call, memory, op, count, n
        self.thetas = [memory.floats(numbers(count)) for _ in range(adapters)]
        self.xs, self.dys = numbers(n * op.d_in), numbers(n * op.d_out)

    def one(self, theta, rows):
        """The bits of Y and dX, and the gradient, of a call over some rows."""
        call, op, count, d_in, d_out = self.call, self.op, self.count, self.op.d_in, self.op.d_out
        floats, pack, p = self.memory.floats, self.memory.pack, self.memory.pointer
        cut = lambda values, width: [v for i in rows for v in values[i * width:(i + 1) * width]]
        x, dy, y, dx = pack(cut(self.xs, d_in)), pack(cut(self.dys, d_out)), pack([0.0] * (len(rows) * d_out)), pack([0.0] * (len(rows) * d_in))
        sizes, grad = Sizes(), floats([0.0] * count)
        call("kron_sizes", byref(op), c_size_t(len(rows)), byref(sizes))
        scratch = max(sizes.forward, sizes.backward)
        workspace, t = floats([0.0] * scratch), floats([0.0] * sizes.t)
        call("kron_forward", byref(op), byref(Forward(
            BF16, 0, len(rows), p(x), d_in, p(y), d_out, p(theta), p(t), p(workspace), scratch, None)))
        call("kron_backward", byref(op), byref(Backward(
            BF16, 0, len(rows), p(x), d_in, p(dy), d_out, p(dx), d_in, p(theta), p(t), p(grad), p(workspace), scratch, None)))
        return self.memory.read(y), self.memory.read(dx), self.memory.read(grad)


def segments(call, memory, numbers, op, count):
    """Rows of two adapters in one call, against calls over one adapter."""
    floats, pack, p = memory.floats, memory.pack, memory.pointer
    table = [1, -1, 0, 1, 1, 0, -1]
    n, d_out, d_in = len(table), op.d_out, op.d_in
    of = Many(call, memory, numbers, op, count, n, 2)
    x, dy, y, dx = pack(of.xs), pack(of.dys), pack([0.5] * (n * d_out)), pack([0.25] * (n * d_in))
    grads = [floats([0.0] * count) for _ in range(2)]
    pointers = (c_void_p * 2)(*(p(grad) for grad in grads))
    adapters, sizes = (Adapter * 2)(*(Adapter(op, p(theta)) for theta in of.thetas)), ManySizes()
    call("kron_segments_sizes", adapters, c_size_t(2), c_size_t(n), byref(sizes))
    scratch = max(sizes.forward, sizes.backward)
    workspace, t = floats([0.0] * scratch), floats([0.0] * sizes.t)
    rows = (c_int32 * n)(*table)
    call("kron_forward_segments", adapters, c_size_t(2), byref(ForwardSegments(
        BF16, 0, n, p(x), d_in, p(y), d_out, rows, p(t), p(workspace), scratch, None)))
    call("kron_backward_segments", adapters, c_size_t(2), byref(BackwardSegments(
        BF16, 0, n, p(x), d_in, p(dy), d_out, p(dx), d_in, rows, p(t), pointers, p(workspace), scratch, None)))
    want_y, want_dx = [bf16(0.5)] * (n * d_out), [bf16(0.25)] * (n * d_in)
    for number, (theta, grad) in enumerate(zip(of.thetas, grads)):
        own = [i for i in range(n) if table[i] == number]
        got_y, got_dx, got_grad = of.one(theta, own)
        for at, i in enumerate(own):
            want_y[i * d_out:(i + 1) * d_out] = got_y[at * d_out:(at + 1) * d_out]
            want_dx[i * d_in:(i + 1) * d_in] = got_dx[at * d_in:(at + 1) * d_in]
        assert any(got_grad) and memory.read(grad) == got_grad
    assert memory.read(y) == want_y and memory.read(dx) == want_dx


def group(call, memory, numbers, op, count, n):
    """Four adapters on one X, against calls over one adapter."""
    floats, pack, p = memory.floats, memory.pack, memory.pointer
    d_out, d_in = op.d_out, op.d_in
    of, sizes = Many(call, memory, numbers, op, count, n, 4), ManySizes()
    x, dy = pack(of.xs), pack(of.dys)
    ys, dx = [pack([0.0] * (n * d_out)) for _ in range(4)], pack([0.0] * (n * d_in))
    grads = [floats([0.0] * count) for _ in range(4)]
    pointers = (c_void_p * 4)(*(p(grad) for grad in grads))
    terms = (Term * 4)(*(Term(op, p(theta), output, None) for output, theta in enumerate(of.thetas)))
    call("kron_group_sizes", terms, c_size_t(4), c_size_t(n), byref(sizes))
    scratch = max(sizes.forward, sizes.backward)
    workspace, t = floats([0.0] * scratch), floats([0.0] * sizes.t)
    outputs = (GroupY * 4)(*(GroupY(p(y), d_out, 0) for y in ys))
    gradients = (GroupDy * 4)(*(GroupDy(p(dy), d_out) for _ in ys))
    call("kron_forward_group", terms, c_size_t(4), byref(ForwardGroup(
        BF16, n, p(x), d_in, outputs, 4, p(t), p(workspace), scratch)))
    call("kron_backward_group", terms, c_size_t(4), byref(BackwardGroup(
        BF16, 0, n, p(x), d_in, gradients, 4, p(dx), d_in, p(t), pointers, p(workspace), scratch)))
    sums = [0.0] * (n * d_in)
    for theta, y, grad in zip(of.thetas, ys, grads):
        got_y, got_dx, got_grad = of.one(theta, range(n))
        if n <= 64:
            assert memory.read(y) == got_y and memory.read(grad) == got_grad
        # A device joins larger calls, whose sums have another order.
        close("y of a group", [wide(v) for v in memory.read(y)], [wide(v) for v in got_y], 2**-6)
        close("a gradient of a group", memory.read(grad), got_grad, 2**-6)
        sums = [total + wide(v) for total, v in zip(sums, got_dx)]
    close("dx of a group", [wide(v) for v in memory.read(dx)], sums, 2**-6)


def main(library, where):
    memory = memory_of(where)
    floats, pack, p = memory.floats, memory.pack, memory.pointer
    kron = ctypes.CDLL(library)
    kron.kron_last_error.restype = c_char_p
    assert kron.kron_abi() == ABI, f"the library's KRON_ABI is {kron.kron_abi()}, not {ABI}"
    device = None if where == "host" else byref(Device(int(where), None))

    def call(name, *arguments):
        status = getattr(kron, name)(device, *arguments)
        assert status == 0, f"{name}: {status}: {kron.kron_last_error().decode()}"

    n, ao, ai, bo, ci, r = 9, 4, 2, 8, 16, 4
    d_out, d_in, scale = ao * bo, ai * ci, 0.75
    rng = random.Random(5)
    numbers = lambda count: [rng.uniform(-1, 1) for _ in range(count)]
    a, b, c = numbers(ao * ai), numbers(bo * r), numbers(r * ci)
    theta = floats(a + b + c)
    x, dy, w = (pack(numbers(count)) for count in (n * d_in, n * d_out, d_out * d_in))
    widened = lambda buffer: [wide(v) for v in memory.read(buffer)]
    wx, wdy, ww = map(widened, (x, dy, w))
    delta = [[scale * a[o // bo * ai + k // ci] * sum(b[o % bo * r + q] * c[q * ci + k % ci] for q in range(r))
              for k in range(d_in)] for o in range(d_out)]

    op = Op(d_out, d_in, ao, ai, r, scale, 0.25)
    sizes = Sizes()
    def measure(stream):
        place = device if stream is None else byref(Device(int(where), stream))
        status = kron.kron_sizes(place, byref(op), c_size_t(n), byref(sizes))
        assert status == 0, f"kron_sizes: {status}: {kron.kron_last_error().decode()}"

    on_driver = isinstance(memory, Driver)
    # On a device the first call loads the kernels, even inside a capture, and does not end it.
    memory.captured(measure) if on_driver else measure(None)
    count = len(a + b + c)
    assert (sizes.theta, sizes.t) == (count, n * ai * r)
    scratch = max(sizes.forward, sizes.backward, sizes.merge)
    workspace, t = floats([0.0] * scratch), floats([0.0] * sizes.t)

    y = pack([0.0] * (n * d_out))
    forward = Forward(BF16, 0, n, p(x), d_in, p(y), d_out, p(theta), p(t), p(workspace), scratch, None)
    call("kron_forward", byref(op), byref(forward))
    want = [sum(delta[o][k] * wx[i * d_in + k] for k in range(d_in)) for i in range(n) for o in range(d_out)]
    close("y", widened(y), want, 2**-6)
    if on_driver:
        plain = memory.read(y)
        memory.captured(lambda stream: kron.kron_forward(byref(Device(int(where), stream)), byref(op), byref(forward)))
        assert memory.read(y) == plain, "a graph gives other bits than the call"

    dx, grad = pack([0.0] * (n * d_in)), floats([0.0] * count)
    backward = Backward(BF16, 0, n, p(x), d_in, p(dy), d_out, p(dx), d_in, p(theta), p(t), p(grad), p(workspace), scratch, None)
    call("kron_backward", byref(op), byref(backward))
    want = [sum(wdy[i * d_out + o] * delta[o][k] for o in range(d_out)) for i in range(n) for k in range(d_in)]
    close("dx", widened(dx), want, 2**-6)
    # Each factor enters dW once: <factor, its gradient> is the loss sum(dY * Y), three times over.
    loss = sum(wdy[i * d_out + o] * delta[o][k] * wx[i * d_in + k]
               for i in range(n) for o in range(d_out) for k in range(d_in))
    factors = (0, len(a)), (len(a), len(a) + len(b)), (len(a) + len(b), count)
    terms = [g * v for g, v in zip(memory.read(grad), memory.read(theta))]
    size = sum(map(abs, terms))
    for first, last in factors:
        close("grad", [sum(terms[first:last]) / size + 1], [loss / size + 1], 2**-6)

    merge = Merge(BF16, 1, d_out, 0, p(w), d_in, p(theta), p(workspace), scratch)
    call("kron_merge", byref(op), byref(merge))
    close("w", widened(w), [v + delta[i // d_in][i % d_in] for i, v in enumerate(ww)], 2**-8)

    # Dropout: a key changes Y, the same key gives the same bits.
    plain, key = memory.read(y), Key(3, 1 << 40)
    forward.key = ctypes.pointer(key)
    call("kron_forward", byref(op), byref(forward))
    once = memory.read(y)
    call("kron_forward", byref(op), byref(forward))
    assert once == memory.read(y) != plain
    assert kron.kron_forward(device, byref(op), None) == 1 and b"null pointer" in kron.kron_last_error()
    plain = Op(d_out, d_in, ao, ai, r, scale, 0.0)
    for n in (7, 100):
        group(call, memory, numbers, Op(d_out, 512, ao, ai, r, scale, 0.0), ao * ai + bo * r + r * 512 // ai, n)
    if where == "host":
        segments(call, memory, numbers, plain, count)
    else:
        assert kron.kron_forward_segments(device, None, 0, None) == 2 and b"host alone" in kron.kron_last_error()
    print("agrees")


if __name__ == "__main__":
    main(*sys.argv[1:])
