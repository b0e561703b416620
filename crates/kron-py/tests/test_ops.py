"""The ops against float64, and what they refuse."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import kron_lora
import pytest
import torch
from torch.nn import functional

# d_out × d_in by a_out, a_in, rank (0: a full inner factor).
SHAPES = [((48, 64), 4, 8, 3), ((48, 64), 1, 1, 4), ((576, 192), 16, 2, 8), ((30, 35), 5, 7, 1), ((32, 32), 8, 8, 0)]
EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def problem(shape, dtype, lead=(3, 5), seed=1, factors=torch.float32):
    (d_out, d_in), a_out, a_in, r = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*size, dtype=dtype):
        return (torch.randn(*size, generator=generator) / 4).to(dtype).requires_grad_()

    b_out, c_in = d_out // a_out, d_in // a_in
    b = random(b_out, r, dtype=factors) if r else None
    c = random(r or b_out, c_in, dtype=factors)
    x, weight, bias = random(*lead, d_in), random(d_out, d_in), random(d_out)
    return x, weight, bias, random(a_out, a_in, dtype=factors), b, c, 0.75


def exact(x, weight, bias, a, b, c, scale, magnitude=False):
    """The formula in float64; with `magnitude`, of absolute values, whose results bound the sums of all roundings."""
    wide = [None if v is None else v.detach().double() for v in (x, weight, bias, a, b, c)]
    x, weight, bias, a, b, c = [v if v is None or not magnitude else v.abs() for v in wide]
    leaves = [v if v is None else v.requires_grad_() for v in (x, weight, bias, a, b, c)]
    x, weight, bias, a, b, c = leaves
    matrix = torch.kron(a, c if b is None else b @ c) * scale
    y = functional.linear(x, weight, bias) + functional.linear(x, matrix)
    return y, leaves


def assert_close(got, want, magnitude, dtype, terms, what):
    """Compares within the rounding of float32 sums of `terms` terms, and of two results of the dtype."""
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    bound = magnitude * (terms * EPSILON[torch.float32] + 3 * EPSILON[dtype]) + 3 * subnormal
    error = (got.double() - want).abs()
    assert bool((error <= bound).all()), f"{what}: {(error / bound).max():.2f} of the bound"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("lead", [(3, 5), (1,), (70,), (0,), ()])
def test_values_and_gradients_are_the_formulas(shape, dtype, lead):
    args = problem(shape, dtype, lead)
    (want, leaves), (size, sizes) = exact(*args), exact(*args, magnitude=True)
    y = kron_lora.linear(*args)
    assert y.dtype == dtype and y.shape == want.shape
    rows = max(1, want.numel() // want.shape[-1])
    terms = 4 * sum(shape[0]) + 4 * rows
    assert_close(y, want, size, dtype, terms, "y")
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(dy)
    want.backward(dy.double())
    size.backward(dy.double().abs())
    for name, got, want, size in zip(("x", "weight", "bias", "a", "b", "c"), args, leaves, sizes):
        if got is not None:
            assert got.grad.dtype == got.dtype
            assert_close(got.grad, want.grad, size.grad, dtype, terms, f"gradient of {name}")


@pytest.mark.parametrize("shape", SHAPES)
def test_delta_is_linear_without_its_base(shape):
    x, weight, bias, *factors = problem(shape, torch.float32)
    zero = torch.zeros_like(weight)
    alone, both = kron_lora.delta(x, *factors), kron_lora.linear(x, zero, None, *factors)
    assert torch.equal(alone, both)
    leaves = [x] + [f for f in factors[:3] if f is not None]
    ours = torch.autograd.grad(alone.square().sum(), leaves)
    theirs = torch.autograd.grad(both.square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("dtype", EPSILON)
def test_strided_inputs_are_read_as_they_are(dtype):
    x, *rest = problem(SHAPES[0], dtype)
    factors = rest[2:]
    want = kron_lora.delta(x, *factors)
    wide = torch.zeros(3, 5, 128, dtype=dtype)
    wide[..., 17:81] = x.detach()
    turned = x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for other in (wide[..., 17:81], turned, x.detach()[None].expand(1, 3, 5, 64)[0]):
        assert torch.equal(kron_lora.delta(other, *factors), want)
        torch.testing.assert_close(kron_lora.linear(other, *rest), kron_lora.linear(x, *rest), rtol=0.02, atol=0.02)
        # The gradient that arrives may be strided as well.
        dy = torch.randn(48, 3, 5).to(dtype).permute(1, 2, 0)
        one, two = x.detach().requires_grad_(), other.detach().requires_grad_()
        kron_lora.delta(one, *factors).backward(dy.contiguous())
        kron_lora.delta(two, *factors).backward(dy)
        assert torch.equal(one.grad, two.grad)
        one.grad = two.grad = None
        kron_lora.linear(one, *rest).backward(dy.contiguous())
        kron_lora.linear(two, *rest).backward(dy)
        torch.testing.assert_close(one.grad, two.grad, rtol=0.02, atol=0.02)


def test_bits_do_not_depend_on_the_threads():
    args = problem(((1024, 1024), 16, 2, 8), torch.float32, (512,))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        y = kron_lora.delta(args[0], *args[3:])
        results.append((y, *torch.autograd.grad(y.square().sum(), [args[0], *args[3:6]])))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_threads_of_python_compute_at_once():
    """Each has scratch of its own: the extension computes without Python's lock."""
    def result(seed):
        with torch.no_grad():
            x, _, _, *factors = problems[seed]
            return kron_lora.delta(x, *factors)

    problems = [problem(((512, 512), 16, 2, 8), torch.float32, (128,), seed) for seed in range(8)]
    want = [result(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: torch.equal(result(i % 8), want[i % 8]), range(1000)))
    assert all(results)


def test_only_wanted_gradients_are_computed():
    x, weight, bias, a, b, c, scale = problem(SHAPES[0], torch.float32)
    y = kron_lora.linear(x.detach(), weight.detach(), None, a, b, c.detach(), scale)
    y.sum().backward()
    assert a.grad is not None and b.grad is not None and c.grad is None and x.grad is None
    with torch.no_grad():
        assert not kron_lora.linear(x, weight, bias, a, b, c, scale).requires_grad


def test_second_derivatives_are_refused():
    args = problem(SHAPES[0], torch.float32)
    for y in (kron_lora.linear(*args), kron_lora.delta(args[0], *args[3:])):
        (dx,) = torch.autograd.grad(y.square().sum(), args[0], create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            dx.sum().backward()


def test_torch_checks_the_ops():
    x, weight, bias, a, b, c, scale = problem(SHAPES[0], torch.float32)
    from kron_lora import _ops

    for op, args in ((_ops._linear, (x, weight, bias, a, b, c, scale)), (_ops._delta, (x, a, b, c, scale))):
        torch.library.opcheck(op, args)


def test_compile_keeps_one_graph():
    args = problem(SHAPES[0], torch.float32)

    def step(x):
        return functional.silu(kron_lora.linear(x, *args[1:])).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    one, two = args[0].detach().requires_grad_(), args[0].detach().requires_grad_()
    step(one).backward()
    compiled(two).backward()
    assert torch.equal(one.grad, two.grad)


def test_autocast_computes_in_its_dtype():
    x, weight, bias, *factors = problem(SHAPES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = kron_lora.linear(x, weight, bias, *factors)
    assert y.dtype == torch.bfloat16
    want = kron_lora.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), *factors)
    assert torch.equal(y, want)
    y.sum().backward()
    assert x.grad.dtype == torch.float32 and factors[0].grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.zeros(3, 63)), ValueError, "x is 3 × 63"),
        (dict(x=torch.tensor(1.0)), ValueError, "factors are matrices"),
        (dict(x=torch.zeros(3, 64, dtype=torch.float64)), TypeError, "x is torch.float64"),
        (dict(x=torch.zeros(3, 64, dtype=torch.int32)), TypeError, "x is torch.int32"),
        (dict(x=torch.zeros(3, 64, device="meta")), TypeError, "on meta"),
        (dict(x=torch.eye(64).to_sparse()), TypeError, "sparse"),
        (dict(weight=torch.zeros(48, 64, dtype=torch.bfloat16)), TypeError, "weight is torch.bfloat16"),
        (dict(weight=torch.zeros(48, 60)), ValueError, "W is 48 × 60"),
        (dict(weight=torch.zeros(48)), ValueError, "factors are matrices"),
        (dict(a=torch.zeros(4, 7)), ValueError, "do not fit"),
        (dict(a=torch.zeros(32)), ValueError, "factors are matrices"),
        (dict(a=torch.zeros(4, 8, dtype=torch.complex64)), TypeError, "a is torch.complex64"),
        (dict(b=torch.zeros(12, 0), c=torch.zeros(0, 8)), ValueError, "one row and column or more"),
        (dict(c=torch.zeros(4, 8)), ValueError, "do not fit"),
        (dict(scale=float("nan")), ValueError, "NaN"),
        (dict(scale=float("inf")), ValueError, "inf"),
    ],
)
def test_bad_input_is_refused_by_a_sentence(change, error, message):
    names = ("x", "weight", "bias", "a", "b", "c", "scale")
    args = dict(zip(names, problem(SHAPES[0], torch.float32))) | change
    with pytest.raises(error, match=message):
        kron_lora.linear(**args)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_computes():
    """The parent's threads do not exist in the child, whose own torch would wait for them."""
    code = """
import multiprocessing, torch, kron_lora, test_ops
x, _, _, *factors = test_ops.problem(((1024, 1024), 16, 2, 8), torch.float32, (256,))
def compute():
    with torch.no_grad():
        return kron_lora.delta(x, *factors).numpy().tobytes()
def child(connection):
    connection.send(compute() == want)
want = compute()
here, there = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
process.start()
assert here.poll(60), "the child hangs"
assert here.recv()
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *sys.path]))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


class Rows(torch.utils.data.Dataset):
    """Examples that a loader's process computes by the op."""

    def __init__(self):
        self.args = [v if v is None or isinstance(v, float) else v.detach() for v in problem(SHAPES[0], torch.float32)]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return kron_lora.linear(self.args[0] * i, *self.args[1:])


def test_a_data_loader_computes():
    rows = Rows()
    want = torch.stack([rows[i] for i in range(len(rows))])
    got = torch.cat(list(torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2)))
    torch.testing.assert_close(got, want)


def test_programs_start_without_torch():
    code = "import sys, kron_lora; assert 'torch' not in sys.modules; assert not hasattr(kron_lora, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
