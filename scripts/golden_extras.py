"""Golden adapters that hold more than ΔW: what PEFT 0.21.2 and lycoris-lora 4.1.3 save and merge, on a CPU.

    golden_extras.py OUT       needs torch 2.15.0, peft 0.21.2, lycoris-lora 4.1.3, transformers, safetensors 0.8

A small model with an embedding, linear layers with and without a bias, GPT-2's Conv1D, a norm and two stacks of
experts. `merged.safetensors` has the changed tensors of every adapter as `adapter/tensor`.
"""

import shutil
import sys
import warnings
from pathlib import Path

import torch
from lycoris import create_lycoris
from lycoris.wrapper import LycorisNetwork
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

warnings.simplefilter("ignore")
out = Path(sys.argv[1])
vocabulary, width, inner, experts = 11, 12, 20, 3


class Experts(nn.Module):
    """2·I = H, so that the first stack is square; the model says how it is stored."""

    def __init__(self, is_transposed, half):
        super().__init__()
        self.is_transposed = is_transposed
        sides = [(width, 2 * half), (half, width)]
        up, down = sides if is_transposed else [side[::-1] for side in sides]
        self.gate_up_proj = nn.Parameter(torch.randn(experts, *up) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(experts, *down) * 0.3)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(inner, width, bias=False)
        self.c_attn = Conv1D(inner, width)
        self.experts = Experts(False, 7)
        self.packed = Experts(True, 7)
        self.square = Experts(False, width // 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Body()
        self.config = {"model_type": "custom"}

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return None


torch.manual_seed(11)
start = {key: value * 0.5 + torch.randn_like(value) * 0.1 for key, value in Model().state_dict().items()}
merged = {}


def model():
    fresh = Model()
    fresh.load_state_dict(start)
    return fresh.eval()


def randomise(module):
    for name, parameter in module.named_parameters():
        if any(part in name for part in ("lora_", "lokr_", "dora_scale", "w_norm", "b_norm", "trainable_tokens")):
            noise = torch.randn_like(parameter) * 0.4
            parameter.copy_(parameter + noise if "magnitude" in name or "dora" in name else noise)


def keep(name, state):
    changed = {key: value for key, value in state.items() if not torch.equal(value, start[key])}
    assert changed, name
    merged.update({f"{name}/{key}": value.contiguous().clone() for key, value in changed.items()})


def wrapped(name, **options):
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, **options})
    peft = get_peft_model(model(), config)
    randomise(peft)
    shutil.rmtree(out / name, ignore_errors=True)
    return peft


def peft(name, state=None, **options):
    trained = wrapped(name, **options)
    for key, value in (state or {}).items():
        trained.state_dict()[key].copy_(value)
    trained.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    keep(name, trained.merge_and_unload().state_dict())


def lycoris(name, algo="lokr", **options):
    trained = model()
    net = create_lycoris(trained, 1.0, algo=algo, **{"linear_dim": 2, "linear_alpha": 3, "factor": -1, **options})
    net.apply_to()
    randomise(net)
    state = dict(start)
    for lora in net.loras:
        module = lora.lora_name.removeprefix("lycoris_").replace("model_", "model.", 1)
        if lora.name == "norm":
            weight, bias = lora.make_weight(1)
            state[f"{module}.weight"], state[f"{module}.bias"] = weight, bias
        elif lora.name == "full":
            noise = [torch.randn_like(p) * 0.3 for p in (lora.weight, lora.bias) if p is not None]
            for kind, parameter, noise in zip(["weight", "bias"], [lora.weight, lora.bias], noise):
                parameter.add_(noise)
                state[f"{module}.{kind}"] = parameter.detach().clone()
        else:
            # LyCORIS applies the scale twice when it merges; its forward pass is what was trained.
            eye = torch.eye(lora.shape[1])
            bias = start.get(f"{module}.bias", 0)
            state[f"{module}.weight"] = (lora(eye) - bias).T
    save_file({key: value.contiguous().clone() for key, value in net.state_dict().items()}, out / f"{name}.safetensors")
    keep(name, state)


def combined():
    """Two LoRAs of one rank, of which one alone has k_proj, and what add_weighted_adapter makes of them."""
    result = {}
    for name, options in [("combine_a", dict(lora_alpha=5, target_modules=["q_proj", "k_proj"])), ("combine_b", dict(lora_alpha=2, target_modules=["q_proj"]))]:
        wrapped(name, **options).save_pretrained(out / name)
        (out / name / "README.md").unlink(missing_ok=True)
    both = PeftModel.from_pretrained(model(), out / "combine_a", adapter_name="a")
    both.load_adapter(out / "combine_b", adapter_name="b")
    # Here and in PEFT ⌊density·n⌋ of n values are kept.
    ways = {"cat": {}, "linear": {}, "ties": {"density": 0.4}, "ties_frequency": {"density": 0.7}, "magnitude_prune": {"density": 0.3}}
    for way, options in ways.items():
        if way == "ties_frequency":
            options = options | {"majority_sign_method": "frequency"}
        both.add_weighted_adapter(["a", "b"], [0.7, -0.3], way, combination_type=way.removesuffix("_frequency"), **options)
        for module in ["q_proj", "k_proj"]:
            layer = getattr(both.base_model.model.model, module)
            assert layer.scaling[way] == 1.0
            result[f"{way}/model.{module}.delta"] = layer.lora_B[way].weight @ layer.lora_A[way].weight
    save_file({key: value.contiguous().clone() for key, value in result.items()}, out / "combined.safetensors")


with torch.no_grad():
    peft("dora", use_dora=True, target_modules=["q_proj", "k_proj"])
    peft("dora_embedding", use_dora=True, target_modules=["embed_tokens"])
    peft("dora_conv1d", use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)
    peft("conv1d", target_modules=["c_attn"], fan_in_fan_out=True)
    peft("embedding", target_modules=["embed_tokens", "k_proj"], use_rslora=True)
    peft("lora_bias", lora_bias=True, target_modules=["q_proj"])
    trained = {f"base_model.model.model.{key}.bias": torch.randn(size) for key, size in [("norm", width), ("q_proj.base_layer", inner)]}
    peft("biases", state=trained, bias="all", target_modules=["q_proj", "k_proj"])
    stacks = [f"{module}.{name}" for module in ["experts", "packed", "square"] for name in ["gate_up_proj", "down_proj"]]
    peft("experts", target_modules=["k_proj"], target_parameters=stacks, rank_pattern={"packed.down_proj": 2})
    peft("experts_square", target_modules=[], target_parameters=["square.gate_up_proj"])
    lycoris("dora_outputs", dora_wd=True, wd_on_output=True)
    lycoris("dora_inputs", dora_wd=True, wd_on_output=False, decompose_both=True, linear_dim=1)
    lycoris("norms", train_norm=True)
    lycoris("full", algo="full")
    combined()
    peft("tokens", target_modules=["k_proj"], trainable_token_indices={"embed_tokens": [1, 10, 4]})
    tensors = {key: value.contiguous() for key, value in start.items()}
    save_file(tensors, out / "base.safetensors")
    save_file(merged, out / "merged.safetensors")
