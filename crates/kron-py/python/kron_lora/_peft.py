"""PEFT's LoKr layers, computed by the ops of this package."""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ._ops import _DEVICES, _DTYPES, delta, linear


@dataclass(frozen=True)
class Report:
    """What `accelerate` did: names of modules, and for those left alone the reason."""

    accelerated: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.accelerated)} layers accelerated, {len(self.left)} left as they are"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.left.items()])


class _FastLinear(LoKrLinear):
    """PEFT's layer with the same parameters and names; a call that the ops do not cover goes to PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in self.active_adapters if name in self._available_adapters]
        if args or kwargs or self.disable_adapters or self.merged or not all(self._is_exact(n, x) for n in names):
            return super().forward(x, *args, **kwargs)
        names = [name for name in names if not self._is_dropped(name)]
        base = self.base_layer
        if len(names) == 1 and _is_plain(base) and base.weight.dtype == x.dtype:
            return linear(x, base.weight, base.bias, *self._factors(names[0]), self.scaling[names[0]]).to(x.dtype)
        y = base(x)
        for name in names:
            # As PEFT does: the sum of several adapters is rounded once, at the end.
            a, b, c = self._factors(name)
            y = y + delta(x.to(a.dtype), a, b, c, self.scaling[name])
        return y.to(x.dtype)

    def _factors(self, name: str) -> tuple[Tensor, "Tensor | None", Tensor]:
        w1 = self.lokr_w1
        a = w1[name] if name in w1 else self.lokr_w1_a[name] @ self.lokr_w1_b[name]
        if name in self.lokr_w2:
            return a, None, self.lokr_w2[name]
        return a, self.lokr_w2_a[name], self.lokr_w2_b[name]

    def _is_exact(self, name: str, x: Tensor) -> bool:
        """Returns whether the ops compute what PEFT defines, at least as exactly."""
        factors = [self.lokr_w1, self.lokr_w1_a, self.lokr_w2, self.lokr_w2_a]
        dtype = next(f[name].dtype for f in factors if name in f)
        return (
            x.device.type in _DEVICES
            and x.dtype in _DTYPES
            and dtype in (torch.float32, x.dtype)
            and self.cast_input_dtype_enabled
            and not (self.training and self.rank_dropout[name])
        )

    def _is_dropped(self, name: str) -> bool:
        if not self.training:
            return False
        # PEFT draws a number for each call, and the numbers after it are to stay the same.
        drawn, probability = torch.rand(1), self.module_dropout[name]
        return probability > 0.0 and not bool(drawn > probability)


def _is_plain(base: nn.Module) -> bool:
    """Returns whether a call of the module is x·Wᵀ + bias and nothing else."""
    hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
    return type(base) is nn.Linear and "forward" not in vars(base) and not any(hooks)


def accelerate(model: nn.Module) -> Report:
    """Lets the LoKr layers of a PEFT model compute by this package's ops, in place.

    Parameters, their names and `isinstance` stay as they are: saving, loading, merging, switching and disabling
    adapters work as before, and `restore` undoes it. A call that the ops do not cover (another device or dtype,
    `rank_dropout` in training) is computed by PEFT. Layers injected later need another call.

    Returns:
        The names of the layers, and for adapter layers of other kinds the reason why they were left alone.

    Raises:
        ValueError: The model has no adapter layer.
    """
    report = Report()
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) in (LoKrLinear, _FastLinear):
            module.__class__ = _FastLinear
            report.accelerated.append(name)
        else:
            report.left[name] = f"{type(module).__module__}.{type(module).__qualname__} is no LoKr layer of a Linear"
    if not report.accelerated and not report.left:
        raise ValueError(f"{type(model).__qualname__} has no adapter layer: pass a model that PEFT has adapted")
    return report


def restore(model: nn.Module) -> int:
    """Gives the layers of a model back to PEFT; returns their number."""
    layers = [module for module in model.modules() if type(module) is _FastLinear]
    for layer in layers:
        layer.__class__ = LoKrLinear
    return len(layers)
