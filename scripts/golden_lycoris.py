"""Golden LyCORIS files: what lycoris-lora 4.1.3 saves and computes, on a CPU.

    golden_lycoris.py OUT       needs torch 2.15.0, lycoris-lora 4.1.3, safetensors 0.8

A model of two linear layers, 48 → 96 → 60; one adapter for each way in which LoKr is stored.
"""

import sys
from pathlib import Path

import torch
from lycoris import create_lycoris
from safetensors.torch import save_file

out = Path(sys.argv[1])
cases = {
    "w2_product": dict(linear_dim=2, linear_alpha=3),
    "both_products": dict(linear_dim=2, linear_alpha=5, decompose_both=True),
    "both_full": dict(linear_dim=100000, linear_alpha=1),
    "factor_4": dict(linear_dim=4, linear_alpha=1, factor=4),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(48, 96)
        self.block = torch.nn.ModuleDict({"down": torch.nn.Linear(96, 60)})

    def forward(self, x):
        return self.block["down"](torch.nn.functional.relu(self.up(x)))


torch.manual_seed(7)
start = Model().state_dict()
x = torch.randn(5, 48)
outputs = {"x": x, "y": None}
model = Model()
model.load_state_dict(start)
save_file({key: value.contiguous() for key, value in start.items()}, out / "base.safetensors")
with torch.no_grad():
    outputs["y"] = model(x)
    for name, options in cases.items():
        model = Model()
        model.load_state_dict(start)
        net = create_lycoris(model, 1.0, algo="lokr", **{"factor": -1, **options})
        net.apply_to()
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        outputs[f"{name}.y"] = model(x)
        save_file({key: value.contiguous().clone() for key, value in net.state_dict().items()}, out / f"{name}.safetensors")
save_file({key: value.contiguous() for key, value in outputs.items()}, out / "outputs.safetensors")
