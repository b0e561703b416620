#!/usr/bin/env python3
"""Our kernels beside PyTorch's ways to train the same adapter, in one process.
PEFT and LyCORIS take part where Python has them; without torch or a device it
says so and ends well.

    gpu_peers.py LIBRARY [--device cuda|cpu] [--rows 1024,4096] [--width 4096]
                 [--rounds 9] [--out peers.json]

LIBRARY is libkron_capi.so, built with the feature cuda for --device cuda. Every
arm is a whole layer, Y = X·Wᵀ + adapter(X), and its backward: dX and the
adapter's gradient. Y, dX and the gradient are checked against float64 first (of
PEFT and LyCORIS, which draw their own factors, Y and dX); then all are timed in
turn on the same tensors and stream, each round starting with another arm, caches
flushed by reading before every call. On a device, up to 64 rows run as twenty calls in
a CUDA graph, every arm alike, and the time of a graph without them is taken off: a
launch by the host would take longer than the work. The table gives what an arm takes beyond the layer alone,
which is timed twice: the difference is the noise.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p

try:
    import torch
except ImportError as error:
    sys.exit(print(f"skipped: {error}"))

ALPHA, RANK, A_IN, A_OUT = 32.0, 8, 2, 16
SCALE = ALPHA / RANK
FLUSH_BYTES = 512 << 20
# Rows whose calls are too short to be timed one by one, and the calls in their graphs.
FEW_ROWS, FEW_CALLS = 64, 20
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Device(Structure):
    _fields_ = [("device", c_int32), ("stream", c_void_p)]


class Op(Structure):
    _fields_ = [(n, c_size_t) for n in ("d_out", "d_in", "a_out", "a_in", "rank")] + [
        ("scale", c_float), ("dropout", c_float)]


class Sizes(Structure):
    _fields_ = [(n, c_size_t) for n in ("theta", "t", "forward", "backward", "merge")]


class Forward(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("y", c_void_p), ("y_stride", c_size_t),
                ("theta", c_void_p), ("t", c_void_p),
                ("workspace", c_void_p), ("workspace_len", c_size_t), ("key", c_void_p)]


class Backward(Structure):
    _fields_ = [("dtype", c_uint32), ("accumulate", c_uint32), ("rows", c_size_t),
                ("x", c_void_p), ("x_stride", c_size_t), ("dy", c_void_p), ("dy_stride", c_size_t),
                ("dx", c_void_p), ("dx_stride", c_size_t), ("theta", c_void_p), ("t", c_void_p),
                ("grad", c_void_p), ("workspace", c_void_p), ("workspace_len", c_size_t), ("key", c_void_p)]


class Ours:
    """kron_forward and kron_backward on tensors, on torch's current stream."""

    def __init__(self, library, device, d_out, d_in, rows, lora):
        self.kron = ctypes.CDLL(library)
        self.kron.kron_last_error.restype = c_char_p
        self.on_gpu = device.type == "cuda"
        outer = (0, 0) if lora else (A_OUT, A_IN)
        self.op = Op(d_out, d_in, *outer, RANK, SCALE, 0.0)
        sizes = Sizes()
        self.call("kron_sizes", c_size_t(rows), byref(sizes))
        buffer = lambda count: torch.empty(max(1, count), dtype=torch.float32, device=device)
        self.t, self.workspace = buffer(sizes.t), buffer(max(sizes.forward, sizes.backward))

    def call(self, name, *arguments):
        place = None
        if self.on_gpu:
            place = byref(Device(torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream))
        if getattr(self.kron, name)(place, byref(self.op), *arguments):
            raise RuntimeError(f"{name}: {self.kron.kron_last_error().decode()}")

    def forward(self, x, theta, y, accumulate=1):
        call = Forward(DTYPES[x.dtype], accumulate, x.shape[0], x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0),
                       theta.data_ptr(), self.t.data_ptr(), self.workspace.data_ptr(), self.workspace.numel(), None)
        self.call("kron_forward", byref(call))

    def backward(self, x, theta, dy, dx, grad, accumulate=1):
        call = Backward(DTYPES[x.dtype], accumulate, x.shape[0], x.data_ptr(), x.stride(0), dy.data_ptr(), dy.stride(0),
                        dx.data_ptr(), dx.stride(0), theta.data_ptr(), self.t.data_ptr(), grad.data_ptr(),
                        self.workspace.data_ptr(), self.workspace.numel(), None)
        self.call("kron_backward", byref(call))


class Arm:
    """One way: forward(x, w) -> y, backward(x, w, dy) -> (dx, gradient of theta).

    `delta` is what it adds to W; `factors` are those that the gradient belongs to, where they are ours.
    """

    def __init__(self, name, forward, backward, delta, factors=None):
        self.name, self.forward, self.backward = name, forward, backward
        self.delta, self.factors = delta, factors
        self.samples = {"forward": [], "both": []}


def by_autograd(name, layer, parameters, delta, factors=None):
    """An arm whose backward is autograd's; `layer(x, w)` uses the parameters."""
    kept = {}

    def forward(x, w):
        kept["x"] = x.detach().requires_grad_()
        kept["y"] = layer(kept["x"], w)
        return kept["y"]

    def backward(x, w, dy):
        gradients = torch.autograd.grad(kept["y"], [kept["x"], *parameters], dy)
        return gradients[0], torch.cat([g.float().flatten() for g in gradients[1:]])

    return Arm(name, forward, backward, delta, factors)


def frozen(w):
    """A model of one linear layer, whose weight is `w`."""
    model = torch.nn.Sequential()
    model.add_module("layer", torch.nn.Linear(w.shape[1], w.shape[0], bias=False, device=w.device, dtype=w.dtype))
    model.layer.weight = torch.nn.Parameter(w, requires_grad=False)
    return model


def peft_lokr(w):
    """PEFT's LoKr as it ships, and with its factors in the activations' type; nothing where it is not installed."""
    try:
        import peft
    except ImportError:
        print("skipped: the arms of PEFT, which is not installed")
        return []
    list_ = []
    for name, cast in ("as shipped", True), ("factors in the activations' type", False):
        config = peft.LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["layer"], init_weights=False)
        model = peft.get_peft_model(frozen(w), config, autocast_adapter_dtype=cast)
        layer = model.base_model.model.layer
        parameters = [p for p in layer.parameters() if p.requires_grad]
        delta = layer.get_delta_weight("default").detach().double()
        list_.append(by_autograd(f"PEFT LoKr, {name}", lambda x, _, layer=layer: layer(x), parameters, delta))
    return list_


def lycoris_lokr(w):
    """LyCORIS's LoKr, nothing where it is not installed."""
    try:
        from lycoris import create_lycoris
    except ImportError:
        print("skipped: the arm of LyCORIS, which is not installed")
        return []
    model = frozen(w)
    net = create_lycoris(model, 1.0, algo="lokr", linear_dim=RANK, linear_alpha=ALPHA, factor=A_OUT)
    net.apply_to()
    net.to(w.device, w.dtype)
    parameters = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
        delta = model(torch.eye(w.shape[1], device=w.device, dtype=w.dtype)).T.double() - w.double()
    return [by_autograd("LyCORIS LoKr", lambda x, _: model(x), parameters, delta)]


def arms(library, device, dtype, width, rows, w):
    random = lambda *shape: torch.randn(*shape, device=device) / shape[-1] ** 0.5
    lora = {"b": random(width, RANK), "c": random(RANK, width)}
    kron = {"a": random(A_OUT, A_IN), "b": random(width // A_OUT, RANK), "c": random(RANK, width // A_IN)}
    flat = lambda factors: torch.cat([f.flatten() for f in factors.values()])
    trained = lambda factors: [f.to(dtype).requires_grad_() for f in factors.values()]
    lora_delta = SCALE * lora["b"].double() @ lora["c"].double()
    kron_delta = SCALE * torch.kron(kron["a"].double(), kron["b"].double() @ kron["c"].double())

    base = Arm("layer alone", lambda x, w: x @ w.T, lambda x, w, dy: (dy @ w, torch.empty(0)), None)
    again = Arm("layer alone, again", base.forward, base.backward, None)

    b, c = trained(lora)
    eager = lambda x, w: x @ w.T + (x @ c.T) @ b.T * SCALE
    list_ = [base, again, by_autograd("LoRA, eager", eager, [b, c], lora_delta, lora)]

    kept = {}

    @torch.no_grad()
    def addmm_forward(x, w):
        kept["t"] = x @ c.T
        return (x @ w.T).addmm_(kept["t"], b.T, alpha=SCALE)

    @torch.no_grad()
    def addmm_backward(x, w, dy):
        dt = (dy @ b) * SCALE
        db, dc = (dy.T @ kept["t"]) * SCALE, dt.T @ x
        return (dy @ w).addmm_(dt, c), torch.cat([db.float().flatten(), dc.float().flatten()])

    list_.append(Arm("LoRA, two products into Y", addmm_forward, addmm_backward, lora_delta, lora))
    if device.type == "cuda":
        list_.append(by_autograd("LoRA, compiled", torch.compile(eager), [b, c], lora_delta, lora))

    ka, kb, kc = trained(kron)

    def reshaped(x, w):
        t = x.view(-1, A_IN, width // A_IN) @ kc.T
        u = torch.einsum("ij,njr->nir", ka, t)
        return x @ w.T + (u @ kb.T).reshape(-1, width) * SCALE

    def materialised(x, w):
        return x @ w.T + x @ torch.kron(ka, kb @ kc).T * SCALE

    list_.append(by_autograd("Kron-LoRA, eager", reshaped, [ka, kb, kc], kron_delta, kron))
    if device.type == "cuda":
        list_.append(by_autograd("Kron-LoRA, compiled", torch.compile(reshaped), [ka, kb, kc], kron_delta, kron))
    name = "Kron-LoRA, Kronecker matrix built"
    list_.append(by_autograd(name, materialised, [ka, kb, kc], kron_delta, kron))

    for name, factors, delta in ("LoRA, ours", lora, lora_delta), ("Kron-LoRA, ours", kron, kron_delta):
        ours, theta = Ours(library, device, width, width, rows, factors is lora), flat(factors)

        @torch.no_grad()
        def forward(x, w, ours=ours, theta=theta):
            y = x @ w.T
            ours.forward(x, theta, y)
            return y

        @torch.no_grad()
        def backward(x, w, dy, ours=ours, theta=theta):
            dx, grad = dy @ w, torch.zeros_like(theta)
            ours.backward(x, theta, dy, dx, grad)
            return dx, grad

        list_.append(Arm(name, forward, backward, delta, factors))

    ours, theta = Ours(library, device, width, width, rows, False), flat(kron)

    @torch.no_grad()
    def first_forward(x, w):
        y = torch.empty(x.shape[0], width, dtype=dtype, device=device)
        ours.forward(x, theta, y, accumulate=0)
        return y.addmm_(x, w.T)

    @torch.no_grad()
    def first_backward(x, w, dy):
        dx, grad = torch.empty_like(x), torch.zeros_like(theta)
        ours.backward(x, theta, dy, dx, grad, accumulate=0)
        return dx.addmm_(dy, w), grad

    list_.append(Arm("Kron-LoRA before the layer, ours", first_forward, first_backward, kron_delta, kron))
    return [*list_, *peft_lokr(w), *lycoris_lokr(w)]


def gradient_of(factors, x, dy):
    """The gradient of theta in float64, from that of the whole ΔW."""
    g = SCALE * dy.double().T @ x.double()
    b, c = factors["b"].double(), factors["c"].double()
    if "a" in factors:
        a = factors["a"].double()
        blocks = g.view(A_OUT, b.shape[0], A_IN, c.shape[1])
        da = torch.einsum("ipjq,pq->ij", blocks, b @ c)
        g = torch.einsum("ij,ipjq->pq", a, blocks)
        return torch.cat([da.flatten(), (g @ c.T).flatten(), (b.T @ g).flatten()])
    return torch.cat([(g @ c.T).flatten(), (b.T @ g).flatten()])


def sum_error(terms):
    """Relative error that a float32 sum of so many terms may have."""
    return 2**-24 * terms**0.5


def check(arm, x, w, dy):
    """The largest relative error of Y and dX against float64; refuses more than three roundings, of a gradient six, and
    those of a float32 sum, whose errors add up like a random walk."""
    delta = 0 if arm.delta is None else arm.delta
    whole = w.double() + delta
    y, (dx, gradient) = arm.forward(x, w), arm.backward(x, w, dy)
    errors = [((got.double() - want).norm() / want.norm()).item()
              for got, want in ((y, x.double() @ whole.T), (dx, dy.double() @ whole))]
    worst, eps = max(errors), torch.finfo(x.dtype).eps
    if not worst <= 3 * eps + sum_error(max(w.shape)) or not bool(torch.isfinite(gradient).all()):
        raise RuntimeError(f"{arm.name}: relative error {worst:.2e}")
    if arm.factors:
        want = gradient_of(arm.factors, x, dy)
        error = ((gradient.double() - want).norm() / want.norm()).item()
        if not error <= 6 * eps + sum_error(len(x)):
            raise RuntimeError(f"{arm.name}: its gradient has a relative error of {error:.2e}")
    return worst


def seconds(device, flush, work):
    if device.type == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    flush.sum()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


class Captured:
    """An arm's passes over few rows, each as graphs: with the calls and, for what lies between them, without."""

    def __init__(self, arm, flush, x, w, dy):
        passes = {"forward": lambda: arm.forward(x, w), "both": lambda: (arm.forward(x, w), arm.backward(x, w, dy))}
        self.graphs = {name: self.graph(flush, work) for name, work in passes.items()}
        self.rest = self.graph(flush, lambda: None)

    @staticmethod
    def graph(flush, work):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        # What is made at a first call, such as a compiled kernel, cannot be captured.
        with torch.cuda.stream(side):
            for _ in range(3):
                flush.sum()
                work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(FEW_CALLS):
                    flush.sum()
                    work()
        finally:
            # A capture that fails to end leaves its own stream current, and the arms after it there.
            torch.cuda.set_stream(current)
        return graph

    def seconds(self, device, flush, name):
        whole, rest = (seconds(device, flush, graph.replay) for graph in (self.graphs[name], self.rest))
        return (whole - rest) / FEW_CALLS


def measure(options, device, dtype, rows):
    torch.manual_seed(1)
    width = options.width
    x, dy = (torch.randn(rows, width, device=device).to(dtype) for _ in range(2))
    w = (torch.randn(width, width, device=device) / width**0.5).to(dtype)
    flush = torch.zeros(FLUSH_BYTES // 4 if device.type == "cuda" else 1, device=device)
    few = device.type == "cuda" and rows <= FEW_ROWS
    list_ = arms(options.library, device, dtype, width, rows, w)
    errors = {}
    for arm in list(list_):
        try:
            errors[arm.name] = check(arm, x, w, dy)
            arm.captured = Captured(arm, flush, x, w, dy) if few else None
        except Exception as error:
            # One that does not run, or is wrong, is not timed; the others are. Ours has to be right.
            if arm.name.endswith(", ours") or arm is list_[0]:
                raise
            print(f"refused: {arm.name}, {rows} rows: {str(error).splitlines()[0]}")
            list_.remove(arm)
    for round_ in range(options.rounds):
        for i in range(len(list_)):
            arm = list_[(i + round_) % len(list_)]
            if few:
                for name, samples in arm.samples.items():
                    samples.append(arm.captured.seconds(device, flush, name))
                continue
            forward = seconds(device, flush, lambda: arm.forward(x, w))
            back = seconds(device, flush, lambda: arm.backward(x, w, dy))
            arm.samples["forward"].append(forward)
            arm.samples["both"].append(forward + back)
    median = lambda arm, what: statistics.median(arm.samples[what])
    return [{
        "arm": arm.name, "rows": rows, "width": width, "dtype": str(dtype).removeprefix("torch."),
        "forward_s": median(arm, "forward"), "both_s": median(arm, "both"),
        "marginal_forward_s": median(arm, "forward") - median(list_[0], "forward"),
        "marginal_both_s": median(arm, "both") - median(list_[0], "both"),
        "rel_error": errors[arm.name], "rounds": options.rounds,
    } for arm in list_]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rows", default="1024,4096", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--width", default=4096, type=int)
    parser.add_argument("--rounds", default=9, type=int)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, rank {RANK}, A {A_OUT}×{A_IN}, µs beyond the layer alone\n")
    print("| rows | arm | forward | forward + backward | relative error |\n|--:|---|--:|--:|--:|")
    record = {"device": where, "torch": torch.__version__, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "results": []}
    for rows in options.rows:
        for r in measure(options, device, dtype, rows):
            record["results"].append(r)
            print(f"| {r['rows']} | {r['arm']} | {1e6 * r['marginal_forward_s']:.1f} "
                  f"| {1e6 * r['marginal_both_s']:.1f} | {r['rel_error']:.1e} |", flush=True)
        keep(options.out, record)


def keep(path, record):
    """Writes the record in one step in the place of an older one: a run that is stopped leaves what it measured."""
    if path:
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.replace(path + ".new", path)


if __name__ == "__main__":
    sys.exit(main())
