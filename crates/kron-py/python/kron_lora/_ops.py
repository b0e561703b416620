"""The ops: torch's custom ops over the extension, with their gradients."""

import glob
import math
import os
import threading
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from . import _kron

_DEVICES = ("cpu", "cuda") if _kron.CUDA else ("cpu",)
# Number of the device that runs the kernels on the host, in a build for tests.
_EMULATED = -1
# Scratch of each thread's calls on the CPU.
_kept = threading.local()
_Sizes = tuple[int, int, int, int, int]
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def _share_threads() -> None:
    """Lets the extension compute on the threads that torch computes on."""
    paths = glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*"))
    try:
        with open("/proc/self/maps") as maps:
            paths += {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    except OSError:
        pass  # not Linux
    any(_kron.use_openmp(path) for path in paths)


_share_threads()


def linear(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], a: Tensor, b: Optional[Tensor], c: Tensor, scale: float
) -> Tensor:
    """Computes x·Wᵀ + bias + scale · x·(A ⊗ (B·C))ᵀ, and never builds the Kronecker product.

    One op, forward and backward: the adapter is added to the layer's own output, its gradient to the layer's own dX.
    All arguments but `scale` get gradients. It works under `torch.compile` and autocast, which casts x, the weight
    and the bias.

    Args:
        x: … × d_in, float32, float16 or bfloat16, on the CPU, or on a GPU in a build with the feature `cuda`.
        weight: W, d_out × d_in, in the dtype of x.
        bias: d_out, or None.
        a: A, a_out × a_in, where a_out divides d_out and a_in divides d_in; in any dtype, computed in float32.
        b: B, d_out/a_out × r, or None where `c` is the whole inner factor, d_out/a_out × d_in/a_in.
        c: C, r × d_in/a_in.
        scale: s, usually alpha / r.

    Returns:
        … × d_out, in the dtype of x.

    Raises:
        TypeError: A dtype or device is not supported.
        ValueError: Sizes do not fit.
    """
    _check(x, weight.shape, a, b, c)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if weight.dtype != x.dtype or weight.device != x.device:
        raise TypeError(f"weight is {weight.dtype} on {weight.device}, but x is {x.dtype} on {x.device}")
    return _linear(x, weight, bias, a, b, c, float(scale))[0]


def delta(x: Tensor, a: Tensor, b: Optional[Tensor], c: Tensor, scale: float) -> Tensor:
    """Computes scale · x·(A ⊗ (B·C))ᵀ alone, for a base that `linear` does not take.

    Args:
        x, a, b, c, scale: As in `linear`.

    Returns:
        … × d_out, in the dtype of x.

    Raises:
        TypeError: A dtype or device is not supported.
        ValueError: Sizes do not fit.
    """
    inner = c if b is None else b
    if a.dim() != 2 or inner.dim() != 2:
        raise ValueError(f"a factor is a matrix, but these are {_shapes(a, b, c)}")
    _check(x, (a.shape[0] * inner.shape[0], x.shape[-1] if x.dim() else 0), a, b, c)
    return _delta(x, a, b, c, float(scale))[0]


def _check(x: Tensor, weight, a: Tensor, b: Optional[Tensor], c: Tensor) -> None:
    for name, tensor in (("x", x), ("a", a), ("b", b), ("c", c)):
        if tensor is not None and (tensor.device.type not in _DEVICES or tensor.layout != torch.strided):
            raise TypeError(
                f"{name} is {tensor.layout} on {tensor.device}, but this build takes strided tensors on {' and '.join(_DEVICES)}"
            )
        if tensor is not None and tensor.device != x.device:
            raise TypeError(f"{name} is on {tensor.device}, but x is on {x.device}")
        if tensor is not None and tensor.dtype not in _DTYPES and tensor.dtype != torch.float64:
            raise TypeError(f"{name} is {tensor.dtype}, but the op takes real floating-point numbers")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}, but the op computes float32, float16 and bfloat16")
    factors = (a, c) if b is None else (a, b, c)
    if any(f.dim() != 2 or 0 in f.shape for f in factors) or len(weight) != 2 or x.dim() == 0:
        raise ValueError(f"factors are matrices of one row and column or more, but these are {_shapes(a, b, c)}")
    b_out, c_in = (c.shape[0] if b is None else b.shape[0]), c.shape[1]
    fits = (a.shape[0] * b_out, a.shape[1] * c_in)
    if tuple(weight) != fits or x.shape[-1] != fits[1] or (b is not None and b.shape[1] != c.shape[0]):
        raise ValueError(
            f"x is {_shape(x.shape)} and W is {_shape(weight)}, which the factors {_shapes(a, b, c)} do not fit"
        )


def _shape(shape) -> str:
    return " × ".join(map(str, shape)) or "a number"


def _shapes(a: Tensor, b: Optional[Tensor], c: Tensor) -> str:
    return ", ".join(f"{name}: {_shape(f.shape)}" for name, f in (("a", a), ("b", b), ("c", c)) if f is not None)


def _theta(a: Tensor, b: Optional[Tensor], c: Tensor) -> Tensor:
    """Returns θ, all factors in one float32 vector."""
    return torch.cat([f.reshape(-1) for f in (a, b, c) if f is not None]).to(torch.float32)


def _sizes(a: Tensor, b: Optional[Tensor], c: Tensor) -> _Sizes:
    """Returns a_out, a_in, b_out, c_in and the rank, 0 for a full inner factor."""
    return (*a.shape, c.shape[0], c.shape[1], 0) if b is None else (*a.shape, b.shape[0], c.shape[1], b.shape[1])


def _t_len(a: Tensor, b: Optional[Tensor], c: Tensor, rows: int) -> int:
    return rows * a.shape[1] * (c.shape[0] if b is None else b.shape[1])


def _place(x: Tensor) -> int | tuple[int, int]:
    """Returns the threads of a call on the CPU, or the number of a device and torch's current stream on it."""
    if x.device.type == "cpu":
        return (_EMULATED, 0) if _kron.EMULATES else torch.get_num_threads()
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


_workspace_lens = lru_cache(maxsize=4096)(_kron.workspace_lens)


def _workspace(x: Tensor, sizes: _Sizes, rows: int, backward: bool) -> Tensor:
    """Returns scratch for a call; on the CPU it keeps its memory."""
    length = _workspace_lens(sizes, rows, _place(x))[backward]
    if x.device.type != "cpu":
        return torch.empty(length, dtype=torch.float32, device=x.device)
    if not hasattr(_kept, "workspace") or _kept.workspace.numel() < length:
        _kept.workspace = torch.empty(length, dtype=torch.float32)
    return _kept.workspace


def _matrix(x: Tensor) -> Tensor:
    """Returns … × d as rows of contiguous elements: a view where the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def _at(matrix: Tensor) -> tuple[int, int]:
    # One row may have any stride.
    return matrix.data_ptr(), matrix.stride(0) if matrix.shape[0] > 1 else matrix.shape[1]


def _add_forward(
    x: Tensor, y: Tensor, add: bool, a: Tensor, b: Optional[Tensor], c: Tensor, scale: float
) -> Tensor:
    """Adds the adapter's output to y, n × d_out, or writes it there; returns T."""
    x, rows, theta, sizes = _matrix(x), y.shape[0], _theta(a, b, c), _sizes(a, b, c)
    t = theta.new_empty(_t_len(a, b, c, rows))
    workspace = _workspace(x, sizes, rows, False)
    _kron.forward(
        sizes, scale, _DTYPES[x.dtype], rows, _at(x), _at(y), add, theta.data_ptr(), t.data_ptr(),
        (workspace.data_ptr(), workspace.numel()), _place(x),
    )
    return t


def _add_backward(
    x: Tensor, dy: Tensor, dx: Optional[Tensor], add: bool, t: Tensor,
    a: Tensor, b: Optional[Tensor], c: Tensor, scale: float,
) -> Tensor:
    """Adds the adapter's dX to dx, n × d_in, or writes it there; returns the gradient of θ."""
    x, theta, sizes = _matrix(x), _theta(a, b, c), _sizes(a, b, c)
    grad, rows = torch.zeros_like(theta), x.shape[0]
    workspace = _workspace(x, sizes, rows, True)
    _kron.backward(
        sizes, scale, _DTYPES[x.dtype], rows, _at(x), _at(dy), (0, 0) if dx is None else _at(dx), add,
        theta.data_ptr(), t.data_ptr(), grad.data_ptr(), (workspace.data_ptr(), workspace.numel()), _place(x),
    )
    return grad


@torch.library.custom_op("kron_lora::linear", mutates_args=(), device_types=_DEVICES)
def _linear(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], a: Tensor, b: Optional[Tensor], c: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    y = functional.linear(x, weight, bias).contiguous()
    return y, _add_forward(x, y.view(-1, y.shape[-1]), True, a, b, c, scale)


@_linear.register_fake
def _(x, weight, bias, a, b, c, scale):
    t = x.new_empty(_t_len(a, b, c, math.prod(x.shape[:-1])), dtype=torch.float32)
    return x.new_empty((*x.shape[:-1], weight.shape[0])), t


@torch.library.custom_op("kron_lora::linear_backward", mutates_args=(), device_types=_DEVICES)
def _linear_backward(
    x: Tensor, weight: Tensor, dy: Tensor, t: Tensor, a: Tensor, b: Optional[Tensor], c: Tensor, scale: float,
    wants_dx: bool,
) -> tuple[Tensor, Tensor]:
    dy = _matrix(dy)
    dx = (dy @ weight).contiguous() if wants_dx else None
    grad = _add_backward(x, dy, dx, True, t, a, b, c, scale)
    return x.new_empty(0) if dx is None else dx.view(x.shape), grad


@torch.library.custom_op("kron_lora::delta", mutates_args=(), device_types=_DEVICES)
def _delta(x: Tensor, a: Tensor, b: Optional[Tensor], c: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    y = x.new_empty((*x.shape[:-1], a.shape[0] * (c if b is None else b).shape[0]))
    return y, _add_forward(x, y.view(-1, y.shape[-1]), False, a, b, c, scale)


@_delta.register_fake
def _(x, a, b, c, scale):
    t = x.new_empty(_t_len(a, b, c, math.prod(x.shape[:-1])), dtype=torch.float32)
    return x.new_empty((*x.shape[:-1], a.shape[0] * (c if b is None else b).shape[0])), t


@torch.library.custom_op("kron_lora::delta_backward", mutates_args=(), device_types=_DEVICES)
def _delta_backward(
    x: Tensor, dy: Tensor, t: Tensor, a: Tensor, b: Optional[Tensor], c: Tensor, scale: float, wants_dx: bool
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape) if wants_dx else None
    grad = _add_backward(x, _matrix(dy), None if dx is None else dx.view(-1, dx.shape[-1]), False, t, a, b, c, scale)
    return x.new_empty(0) if dx is None else dx, grad


def _fake_backward(x, factors, wants_dx):
    params = sum(f.numel() for f in factors if f is not None)
    return x.new_empty(x.shape if wants_dx else 0), x.new_empty(params, dtype=torch.float32)


@_linear_backward.register_fake
def _(x, weight, dy, t, a, b, c, scale, wants_dx):
    return _fake_backward(x, (a, b, c), wants_dx)


@_delta_backward.register_fake
def _(x, dy, t, a, b, c, scale, wants_dx):
    return _fake_backward(x, (a, b, c), wants_dx)


def _save_linear(ctx, inputs, output):
    x, weight, bias, a, b, c, ctx.scale = inputs
    ctx.save_for_backward(x, weight, output[1], a, b, c)
    ctx.bias = None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)


def _linear_gradients(ctx, dy, _):
    if dy is None:
        return (None,) * 7
    x, weight, t, *factors = ctx.saved_tensors
    wants_dx, wants_dw, wants_db = ctx.needs_input_grad[:3]
    dx, dtheta = _linear_backward(x, weight, dy, t, *factors, ctx.scale, wants_dx)
    rows = dy.reshape(-1, dy.shape[-1])
    dw = rows.t() @ x.reshape(-1, x.shape[-1]) if wants_dw else None
    db = rows.sum(0).to(ctx.bias) if wants_db else None
    return dx if wants_dx else None, dw, db, *_of_factors(ctx, dtheta, factors, 3), None


def _save_delta(ctx, inputs, output):
    x, a, b, c, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], a, b, c)
    ctx.set_materialize_grads(False)


def _delta_gradients(ctx, dy, _):
    if dy is None:
        return (None,) * 5
    x, t, *factors = ctx.saved_tensors
    wants_dx = ctx.needs_input_grad[0]
    dx, dtheta = _delta_backward(x, dy, t, *factors, ctx.scale, wants_dx)
    return dx if wants_dx else None, *_of_factors(ctx, dtheta, factors, 1), None


def _of_factors(ctx, dtheta: Tensor, factors, first: int) -> list[Optional[Tensor]]:
    """Splits the gradient of θ into those of the factors that want one."""
    parts = iter(dtheta.split([f.numel() for f in factors if f is not None]))
    gradients = [None if f is None else next(parts).view(f.shape).to(f.dtype) for f in factors]
    return [g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad[first : first + 3])]


def _no_second_derivative(ctx, *_):
    raise RuntimeError("kron_lora's ops have first derivatives only, but a derivative of a gradient was asked for")


_linear.register_autograd(_linear_gradients, setup_context=_save_linear)
_delta.register_autograd(_delta_gradients, setup_context=_save_delta)
_linear_backward.register_autograd(_no_second_derivative)
_delta_backward.register_autograd(_no_second_derivative)
