"""Trains a LoKr adapter of PEFT on this package's op, saves it, and loads it without the package's help.

    python train.py FOLDER
"""

import sys

import kron_lora
import torch
from peft import LoKrConfig, PeftModel, get_peft_model
from torch import nn


class Net(nn.Module):
    """Two layers, in place of a model of yours."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x):
        return self.down(nn.functional.silu(self.up(x)))


def base():
    torch.manual_seed(0)
    return Net()


def main(folder):
    model = get_peft_model(base(), LoKrConfig(r=8, alpha=32, decompose_factor=8, target_modules=["up", "down"]))
    print(kron_lora.accelerate(model))

    # What is learnt: a rotation of the input by one place.
    x = torch.randn(512, 256)
    want = x.roll(1, -1)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (model(x) - want).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    assert losses[-1] < 0.9 * losses[0]

    model.eval().save_pretrained(folder)
    loaded = PeftModel.from_pretrained(base(), folder).eval()
    with torch.no_grad():
        distance = (model(x) - loaded(x)).abs().max().item()
    print(f"loaded by PEFT: outputs differ by {distance:.1e}")
    assert distance < 1e-4


if __name__ == "__main__":
    main(sys.argv[1])
