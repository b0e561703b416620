"""PEFT's LoKr layers, accelerated, against PEFT itself and float64."""

import copy
import io

import kron_lora
import pytest
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down, self.conv = nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48, bias=False), nn.Conv1d(1, 1, 1)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


def model(targets=("up", "down"), dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = dict(r=4, alpha=8, decompose_factor=4, init_weights=False) | options
    return get_peft_model(Net().to(dtype), LoKrConfig(target_modules=list(targets), **options))


def outcome(net, x, train=True):
    """Output and all gradients."""
    net.train(train)
    net.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = net(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad] + [p.grad for p in net.parameters() if p.requires_grad]


def assert_as_exact(fast, slow, x):
    """The accelerated model is as near to float64 as PEFT is, or within the rounding of its own dtype."""
    wide = outcome(copy.deepcopy(slow).double(), x.double())
    for got, theirs, want in zip(outcome(fast, x), outcome(slow, x), wide, strict=True):
        size = want.abs().max()
        rounding = 64 * torch.finfo(got.dtype if got.dtype != torch.float32 else torch.float32).eps * size
        if x.dtype != torch.float32:
            rounding = 8 * torch.finfo(x.dtype).eps * size
        error, allowed = (got - want).abs().max(), (theirs - want).abs().max()
        assert error <= 2 * allowed + rounding, f"{error:.3g}, PEFT {allowed:.3g}, size {size:.3g}"


VARIANTS = [
    dict(), dict(r=2), dict(r=64), dict(decompose_both=True, r=1, decompose_factor=8), dict(decompose_factor=-1),
    dict(decompose_factor=16), dict(alpha=1, r=3),
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_pefts(options, dtype):
    slow, fast = model(dtype=dtype, **options), model(dtype=dtype, **options)
    report = kron_lora.accelerate(fast)
    assert len(report.accelerated) == 2 and not report.left
    assert_as_exact(fast, slow, torch.randn(2, 9, 48).to(dtype))


def test_nothing_but_the_computation_changes():
    slow, fast = model(), model()
    names, kinds = list(fast.state_dict()), [type(m) for m in fast.modules()]
    kron_lora.accelerate(fast)
    assert list(fast.state_dict()) == names
    assert all(isinstance(m, k) for m, k in zip(fast.modules(), kinds))
    assert set(get_peft_model_state_dict(fast)) == set(get_peft_model_state_dict(slow))
    assert kron_lora.restore(fast) == 2 and kron_lora.restore(fast) == 0
    assert [type(m) for m in fast.modules()] == kinds


def test_switches_of_peft_work():
    slow, fast = model(), model()
    kron_lora.accelerate(fast)
    x = torch.randn(5, 48)
    same = lambda: torch.testing.assert_close(fast(x), slow(x), rtol=1e-4, atol=1e-5)
    same()
    with fast.disable_adapter(), slow.disable_adapter():
        assert torch.equal(fast(x), slow(x))
    for net in (fast, slow):
        torch.manual_seed(3)
        net.add_adapter("other", LoKrConfig(r=2, alpha=3, decompose_factor=8, target_modules=["up"], init_weights=False))
        net.base_model.set_adapter(["default", "other"])
    same()
    for net in (fast, slow):
        net.set_adapter("other")
    same()
    for net in (fast, slow):
        net.base_model.merge_adapter()
    assert torch.equal(fast(x), slow(x))
    for net in (fast, slow):
        net.base_model.unmerge_adapter()
        for module in net.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(0.5)
    same()
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


def test_saving_and_loading_work():
    fast = model()
    kron_lora.accelerate(fast)
    stream = io.BytesIO()
    torch.save(get_peft_model_state_dict(fast), stream)
    stream.seek(0)
    other = model()
    with torch.no_grad():
        other.base_model.model.up.lokr_w1["default"].zero_()
    kron_lora.accelerate(other)
    set_peft_model_state_dict(other, torch.load(stream))
    x = torch.randn(3, 48)
    assert torch.equal(other(x), fast(x))


def test_checkpointing_and_frozen_input_give_the_same_gradients():
    fast = model()
    kron_lora.accelerate(fast)
    x = torch.randn(4, 48)
    fast(x).square().sum().backward()
    want = [p.grad.clone() for p in fast.parameters() if p.requires_grad]
    fast.zero_grad()
    torch.utils.checkpoint.checkpoint(fast, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(want, (p for p in fast.parameters() if p.requires_grad)))


def test_a_step_of_training_is_pefts():
    slow, fast = model(init_weights=True), model(init_weights=True)
    kron_lora.accelerate(fast)
    for net in (slow, fast):
        torch.manual_seed(1)
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
        for _ in range(5):
            optimiser.zero_grad()
            x = torch.randn(8, 48)
            (net(x) - x.roll(1, -1)).square().mean().backward()
            optimiser.step()
    x = torch.randn(6, 48)
    before = model(init_weights=True)(x)
    assert (slow(x) - before).abs().max() > 0.01
    torch.testing.assert_close(fast(x), slow(x), rtol=1e-3, atol=1e-4)


def test_what_the_ops_do_not_cover_is_pefts():
    for options in (dict(rank_dropout=0.5), dict(module_dropout=0.5)):
        slow, fast = model(**options), model(**options)
        kron_lora.accelerate(fast)
        x = torch.randn(4, 48)
        for seed in range(4):
            torch.manual_seed(seed)
            want = slow.train()(x)
            torch.manual_seed(seed)
            torch.testing.assert_close(fast.train()(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast.eval()(x), slow.eval()(x), rtol=1e-4, atol=1e-5)
    wide, fast = model().double(), model().double()
    kron_lora.accelerate(fast)
    x = torch.randn(4, 48, dtype=torch.float64)
    assert torch.equal(fast(x), wide(x))


def test_hooks_of_the_base_still_run():
    fast = model()
    kron_lora.accelerate(fast)
    seen = []
    fast.base_model.model.up.base_layer.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(4, 48)
    torch.testing.assert_close(fast(x), model()(x), rtol=1e-4, atol=1e-5)
    assert seen == [1]


def test_autocast_is_near_pefts():
    slow, fast = model(), model()
    kron_lora.accelerate(fast)
    x = torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), slow(x), rtol=0.05, atol=0.05)


def test_other_layers_are_reported_and_left_alone():
    net = get_peft_model(Net(), LoraConfig(target_modules=["up"]))
    report = kron_lora.accelerate(net)
    assert not report.accelerated and "lora" in next(iter(report.left.values()))
    convolution = model(targets=("up", "conv"))
    report = kron_lora.accelerate(convolution)
    assert len(report.accelerated) == 1 and "Conv1d" in str(report)
    with pytest.raises(ValueError, match="no adapter layer"):
        kron_lora.accelerate(Net())
