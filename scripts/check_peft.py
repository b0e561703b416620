"""Both directions against the real packages; run by check-peft.sh.

    check_peft.py KRON MODEL      MODEL: a small LLaMA with PEFT adapters (tests/golden/model_llama)
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("error", message=".*missing.*keys.*")
kron, golden = sys.argv[1], Path(sys.argv[2])
failed = []


def run(*args):
    subprocess.run([kron, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def compare(what, got, want, without, bound=1e-5):
    """Relative to the largest output; `without` is the output with no adapter."""
    error = ((got - want).abs().max() / want.abs().max()).item()
    moved = ((without - want).abs().max() / want.abs().max()).item()
    good = error <= bound and moved > 100 * bound
    print(f"{'ok  ' if good else 'FAIL'} {what}: error {error:.1e}, adapter moves the output by {moved:.1e}")
    if not good:
        failed.append(what)


def base():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**json.loads((golden / "config.json").read_text()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    left = model.load_state_dict(load_file(golden / "base.safetensors"), strict=False)
    assert not left.unexpected_keys and not set(left.missing_keys) - {"lm_head.weight"}, left
    return model.eval()


@torch.no_grad()
def peft(tmp):
    from peft import PeftModel

    outputs = load_file(golden / "outputs.safetensors")
    ids, mask = outputs["input_ids"], outputs["attention_mask"]
    logits = lambda model: model(input_ids=ids, attention_mask=mask).logits
    without = logits(base())
    for name in ["lokr", "lokr_mix", "lora", "lora_rs"]:
        want = logits(PeftModel.from_pretrained(base(), golden / name))
        ours = tmp / f"{name}.safetensors"
        run("convert", golden / name, ours, "--to", "kron")
        ways = [("lora", ["--side", "in"]), ("lora", ["--side", "out"]), ("lora", ["--uniform"]), ("peft-lokr", [])]
        for to, how in ways if name.startswith("lokr") else ways[:3]:
            folder = tmp / f"{name}-{to}-{''.join(how)}"
            run("convert", ours, folder, "--to", to, *how)
            got = logits(PeftModel.from_pretrained(base(), folder))
            compare(f"PEFT {name} → ours → {to} {' '.join(how)}", got, want, without)
        merge(tmp, name, golden / "base.safetensors", base(), golden / name)
    headed(tmp, lambda folder: logits(PeftModel.from_pretrained(base(), folder)), without)


def headed(tmp, logits, without):
    """A head of kron-train is left out: PEFT would take lm_head for it."""
    folder, ours, back = tmp / "headed", tmp / "headed.safetensors", tmp / "headed-back"
    shutil.copytree(golden / "lokr", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["head"]}))
    weights = folder / "adapter_model.safetensors"
    head = {"base_model.model.head.weight": torch.ones(2, 8), "base_model.model.head.bias": torch.ones(2)}
    save_file(load_file(weights) | head, weights, metadata={"format": "pt", "labels": '["a","b"]'})
    run("convert", folder, ours)
    assert {"head.weight", "head.bias"} <= set(load_file(ours)), "our file keeps the head"
    run("convert", ours, back, "--to", "peft-lokr", "--factors-only")
    compare("a head of kron-train is left out → peft-lokr", logits(back), logits(golden / "lokr"), without)


@torch.no_grad()
def saved(tmp):
    """A classifier in modules_to_save: PEFT → ours → PEFT, for a task that PEFT knows and without one."""
    from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model
    from safetensors import safe_open
    from torch import nn

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.out_proj = nn.Linear(24, 10), nn.Linear(10, 3)

        def forward(self, x):
            return self.out_proj(self.dense(x).tanh())

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(24, 36), nn.SiLU(), nn.Linear(36, 24))
            self.norm = nn.LayerNorm(24)
            self.classifier = Head()
            self.config = {"model_type": "custom"}

        def forward(self, x):
            return self.classifier(self.norm(self.body(x)))

    torch.manual_seed(2)
    start, x = Classifier().state_dict(), torch.randn(7, 24)

    def model():
        model = Classifier()
        model.load_state_dict(start)
        return model.eval()

    without, weights = model()(x), tmp / "saved-base.safetensors"
    save_file(start, weights)
    for kind, to in [(LoraConfig, ["lora"]), (LoKrConfig, ["peft-lokr", "lora"])]:
        for task in [None, "SEQ_CLS"]:
            what = f"{kind.__name__} with modules_to_save, task {task}"
            trained = get_peft_model(model(), kind(r=2, task_type=task, target_modules=["body.0", "body.2"], modules_to_save=["classifier", "norm"]))
            for name, parameter in trained.named_parameters():
                if "lora_" in name or "lokr_" in name or "modules_to_save" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
            want = trained.eval().base_model(x)
            theirs, ours = tmp / f"saved-{kind.__name__}-{task}", tmp / f"saved-{kind.__name__}-{task}.safetensors"
            trained.save_pretrained(theirs)
            # PEFT 0.21.2 cannot unload a LoKr beside a saved module that has no weight of its own.
            if kind is LoraConfig:
                merge(tmp, what, weights, model(), theirs)
            run("merge", weights, theirs, tmp / "saved-merged.safetensors", "--force")
            merged = model()
            merged.load_state_dict(load_file(tmp / "saved-merged.safetensors"))
            compare(f"{what} → kron merge", merged(x), want, without)
            run("convert", theirs, ours)
            with safe_open(ours, "pt") as file:
                assert torch.equal(file.get_tensor("norm.bias"), trained.state_dict()["base_model.model.norm.modules_to_save.default.bias"])
            for to_format in to:
                back = tmp / f"{theirs.name}-{to_format}"
                run("convert", ours, back, "--to", to_format)
                compare(f"{what} → ours → {to_format}", PeftModel.from_pretrained(model(), back).eval().base_model(x), want, without)


def merge(tmp, what, weights, model, adapter):
    """kron merge against merge_and_unload, tensor by tensor."""
    from peft import PeftModel

    out = tmp / f"{adapter.name}-merged.safetensors"
    run("merge", weights, adapter, out)
    ours, before = load_file(out), load_file(weights)
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    changed = [key for key in ours if not torch.equal(ours[key], before[key])]
    assert changed == [key for key in ours if not torch.equal(theirs[key], before[key])]
    got, want, without = (torch.cat([state[key].flatten() for key in changed]) for state in (ours, theirs, before))
    compare(f"kron merge and merge_and_unload of {what}, {len(changed)} tensors", got, want, without, bound=1e-6)


@torch.no_grad()
def beyond(tmp):
    """What merge folds beyond ΔW: DoRA, embeddings, biases, experts; and several adapters as one."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from torch import nn

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(4, 32, 16)), nn.Parameter(torch.randn(4, 16, 16))

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.norm = nn.Embedding(30, 16), nn.LayerNorm(16)
            self.q_proj, self.experts = nn.Linear(16, 40), Experts()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Body()
            self.config = {"model_type": "custom"}

        get_input_embeddings = lambda self: self.model.embed_tokens
        get_output_embeddings = lambda self: None

    torch.manual_seed(3)
    start, weights = Model().state_dict(), tmp / "beyond.safetensors"
    save_file(start, weights)

    def model():
        fresh = Model()
        fresh.load_state_dict(start)
        return fresh.eval()

    def trained(name, **options):
        peft = get_peft_model(model(), LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
        for key, parameter in peft.named_parameters():
            if "lora_" in key:
                noise = torch.randn_like(parameter) * 0.2
                parameter.copy_(parameter + noise if "magnitude" in key else noise)
        peft.save_pretrained(tmp / name)
        return tmp / name

    experts = ["experts.gate_up_proj", "experts.down_proj"]
    for name, options in {
        "dora": dict(use_dora=True, target_modules=["q_proj", "embed_tokens"]),
        "rank-stabilised embedding": dict(use_rslora=True, target_modules=["embed_tokens"]),
        "lora_bias": dict(lora_bias=True, target_modules=["q_proj"]),
        "experts": dict(target_modules=[], target_parameters=experts),
    }.items():
        merge(tmp, name, weights, model(), trained(name, **options))

    paths = [trained("one", target_modules=["q_proj"]), trained("two", target_modules=["q_proj"], lora_alpha=2)]
    both = PeftModel.from_pretrained(model(), paths[0], adapter_name="one")
    both.load_adapter(paths[1], adapter_name="two")
    for how, options in {"cat": {}, "linear": {}, "ties": {"density": 0.5}, "magnitude_prune": {"density": 0.25}}.items():
        both.add_weighted_adapter(["one", "two"], [0.7, -0.3], how, combination_type=how, **options)
        folder = tmp / f"combined-{how}"
        flags = [text for key, value in options.items() for text in (f"--{key}", value)]
        run("combine", f"{paths[0]}:0.7", f"{paths[1]}:-0.3", folder, "--to", "lora", "--how", how.replace("_", "-"), *flags)
        layer = PeftModel.from_pretrained(model(), folder).base_model.model.model.q_proj
        want = both.base_model.model.model.q_proj.get_delta_weight(how)
        compare(f"kron combine --how {how}", layer.get_delta_weight("default"), want, torch.zeros_like(want))
    out = tmp / "both-merged.safetensors"
    run("merge", weights, f"{paths[0]}:0.7", f"{paths[1]}:-0.3", out)
    key, layer = "model.q_proj.weight", both.base_model.model.model.q_proj
    compare("kron merge A:0.7 B:-0.3", load_file(out)[key], start[key] + layer.get_delta_weight("cat"), start[key], bound=1e-6)


@torch.no_grad()
def lycoris(tmp):
    from lycoris import create_lycoris, create_lycoris_from_weights
    from peft import PeftModel

    make = lambda: torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.SiLU(), torch.nn.Linear(96, 60))
    torch.manual_seed(1)
    start = make().state_dict()
    x = torch.randn(7, 48)
    save_file(start, tmp / "base.safetensors")

    def model():
        model = make()
        model.load_state_dict(start)
        return model

    without = model()(x)
    weight_decomposed(tmp, model, x, without)
    for options in [dict(linear_dim=2, linear_alpha=3), dict(linear_dim=2, linear_alpha=5, decompose_both=True), dict(linear_dim=100000, linear_alpha=1)]:
        trained = model()
        net = create_lycoris(trained, 1.0, algo="lokr", factor=-1, **options)
        net.apply_to()
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        want = trained(x)
        theirs, ours, back = (tmp / f"lyc-{options['linear_alpha']}-{end}" for end in ["theirs.safetensors", "ours.safetensors", "back.safetensors"])
        state = {k: v.contiguous().clone() for k, v in net.state_dict().items()}
        save_file(state, theirs)
        run("convert", theirs, ours, "--to", "kron")
        run("convert", ours, back, "--to", "lycoris")
        loaded = model()
        net, _ = create_lycoris_from_weights(1.0, str(back), loaded)
        net.apply_to()
        compare(f"LyCORIS {options} → ours → LyCORIS", loaded(x), want, without)

        for to in ["lora", "peft-lokr"]:
            folder = tmp / f"lyc-{options['linear_alpha']}-{to}"
            run("convert", ours, folder, "--to", to, "--base", tmp / "base.safetensors")
            compare(f"LyCORIS {options} → ours → PEFT {to}", PeftModel.from_pretrained(model(), folder)(x), want, without)

        merged, out = model(), tmp / f"lyc-{options['linear_alpha']}-merged.safetensors"
        run("merge", tmp / "base.safetensors", theirs, out)
        merged.load_state_dict(load_file(out))
        compare(f"LyCORIS {options} → kron merge", merged(x), want, without)


def weight_decomposed(tmp, model, x, without):
    """LyCORIS's DoRA of LoKr, with norms of outputs and of inputs."""
    from lycoris import create_lycoris

    for on_output in [True, False]:
        trained = model()
        net = create_lycoris(trained, 1.0, algo="lokr", factor=-1, linear_dim=2, linear_alpha=3, dora_wd=True, wd_on_output=on_output)
        net.apply_to()
        for name, parameter in net.named_parameters():
            noise = torch.randn_like(parameter) * 0.3
            parameter.copy_(parameter + noise if "dora_scale" in name else noise)
        theirs, out = (tmp / f"dora-{on_output}-{end}.safetensors" for end in ["theirs", "merged"])
        save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, theirs)
        run("merge", tmp / "base.safetensors", theirs, out)
        merged = model()
        merged.load_state_dict(load_file(out))
        compare(f"LyCORIS dora_wd, wd_on_output {on_output} → kron merge", merged(x), trained(x), without)


def diffusers(tmp):
    """A LoRA of Kohya's trainer, by diffusers' own converter: its names, its alphas, and the weights that they give."""
    try:
        from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers as converted
    except ImportError as error:
        print(f"diffusers is not compared: {error}")
        return
    blocks = "down_blocks_0_attentions_0_transformer_blocks_0"
    sizes = {"attn1_to_q": (8, 6), "attn1_to_out_0": (6, 8), "ff_net_0_proj": (10, 6), "attn2_to_k": (8, 4)}
    kohya = {}
    for layer, (d_out, d_in) in sizes.items():
        name = f"lora_unet_{blocks}_{layer}"
        kohya |= {f"{name}.lora_down.weight": torch.randn(3, d_in), f"{name}.lora_up.weight": torch.randn(d_out, 3)}
        kohya[f"{name}.alpha"] = torch.tensor(2.0)
    theirs, alphas = converted(dict(kohya))
    downs = [name for name in theirs if name.endswith("down.weight")]
    base, want = {}, {}
    for name in downs:
        # An attention's layer is a part of its processor in these names, and its output the first of a list.
        module = re.sub(r"\.processor\.(\w+)_lora\.down\.weight$", r".\1", name.removeprefix("unet."))
        module = re.sub(r"\.to_out$", ".to_out.0", module.removesuffix(".lora.down.weight"))
        up, down = theirs[name.replace("down.weight", "up.weight")], theirs[name]
        base[f"{module}.weight"] = torch.randn(up.shape[0], down.shape[1])
        alpha = alphas.get(f"{name}.alpha") or alphas[name.replace("lora.down.weight", "alpha")]
        scale = alpha / down.shape[0]
        want[f"{module}.weight"] = base[f"{module}.weight"] + scale * up @ down
    assert len(base) == len(sizes) == len(alphas)
    model, file, folder = (tmp / f"unet-{end}" for end in ["base.safetensors", "kohya.safetensors", "diffusers"])
    save_file(base, model)
    save_file(kohya, file)
    folder.mkdir()
    metadata = {"lora_alpha": "2"}
    save_file({k: v.contiguous() for k, v in theirs.items()}, folder / "pytorch_lora_weights.safetensors", metadata=metadata)
    for source in [file, folder]:
        out = tmp / f"{source.name}-merged.safetensors"
        run("merge", model, source, out)
        merged = load_file(out)
        for name in want:
            compare(f"diffusers {source.name}: {name}", merged[name], want[name], base[name])


with tempfile.TemporaryDirectory() as folder:
    diffusers(Path(folder))
    peft(Path(folder))
    saved(Path(folder))
    beyond(Path(folder))
    lycoris(Path(folder))
sys.exit(f"check-peft: {len(failed)} of the comparisons fail" if failed else 0)
