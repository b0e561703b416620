"""Kron-LoRA adapters on torch's CPU tensors: ΔW = scale · A ⊗ (B·C), never built.

`linear` computes a frozen layer and its adapter in one op; `accelerate` lets PEFT's LoKr layers use it. The programs
`kron` and `kron-train` come with the package, and need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._ops import delta, linear
    from ._peft import Report, accelerate, restore

__all__ = ["Report", "accelerate", "delta", "linear", "restore"]

_MODULES = {"linear": "_ops", "delta": "_ops", "accelerate": "_peft", "restore": "_peft", "Report": "_peft"}


def __getattr__(name: str):
    # The programs start without torch, whose import takes seconds.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
