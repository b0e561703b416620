#!/usr/bin/env python3
"""A training step of a language model: kron-train beside PyTorch with PEFT.

    compare_steps.py KRON_TRAIN MODEL [--rounds 3] [--steps 6] [--threads 2] [--only PyTorch] [--out steps.json]

KRON_TRAIN is the program, MODEL a Hugging Face folder of the LLaMA family (scripts/fetch-smollm2.sh, then
kron convert --to hf --dtype bf16). Needs torch, peft and transformers; scripts/check-peft.sh makes such a Python in
target/peft-venv, and scripts/check-python.sh adds kron_lora, whose arm is left out without it. --only takes the arms
that begin with a text. Each arm is a process of its own that takes a few steps of 8 x 128 tokens in float32 or bf16,
rank 8, alpha 32, adapters on all seven linear layers of a block; the arms take turns. Printed are the
medians over all steps but the first of each process, and the highest resident memory.
"""

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, TOKENS, RANK, ALPHA = 8, 128, 8, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARMS = {
    "PyTorch + PEFT, LoRA": ["--arm", "lora"],
    "PyTorch + PEFT, LoKr (4, 4)": ["--arm", "lokr"],
    "PyTorch + PEFT, LoKr (4, 4), accelerated": ["--arm", "lokr", "--accelerate"],
    "kron-train, LoRA": ["--method", "lora"],
    "kron-train, Kron-LoRA (4, 4)": ["--method", "kron", "--a-out", "4", "--a-in", "4"],
    "PyTorch + PEFT, LoRA, autocast to bf16": ["--arm", "lora", "--autocast"],
    "kron-train, LoRA, precision bf16": ["--method", "lora", "--precision", "bf16"],
    "kron-train, Kron-LoRA (4, 4), precision bf16":
        ["--method", "kron", "--a-out", "4", "--a-in", "4", "--precision", "bf16"],
}


def torch_steps(options):
    """One arm of PyTorch: prints the seconds of each step as JSON."""
    import peft
    import torch
    import transformers

    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if options.arm == "lora":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    else:
        config = peft.LoKrConfig(r=RANK, alpha=ALPHA, target_modules=TARGETS, decompose_factor=4)
    model = peft.get_peft_model(model, config)
    if options.accelerate:
        import kron_lora

        report = kron_lora.accelerate(model)
        assert not report.left, report
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    seconds = []
    for _ in range(options.steps):
        ids = torch.randint(0, model.config.vocab_size, (BATCH, TOKENS))
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds))


def text(steps):
    """Words enough for the steps, whatever the tokenizer: a word is a token or more."""
    words = "the of and a to in is you that it he was for on are as with his they I".split()
    return " ".join(words[(i * i + i // 7) % len(words)] for i in range(2 * BATCH * TOKENS * (steps + 1)))


def run(command, threads):
    """Runs a process; returns what it printed and its highest resident memory in MiB."""
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    with tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True,
                                 env={**os.environ, **{name: str(threads) for name in names}})
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        err.seek(0)
        if status:
            sys.exit(f"{' '.join(command)}: {err.read().strip().splitlines()[-1:]}")
    return out, usage.ru_maxrss / 1024


def steps_of(arm, options, folder):
    """Seconds of an arm's steps, and its highest memory."""
    if ARMS[arm][0] == "--arm":
        command = [sys.executable, __file__, options.kron_train, options.model, *ARMS[arm],
                   "--steps", str(options.steps), "--threads", str(options.threads)]
        out, peak = run(command, options.threads)
        return json.loads(out.splitlines()[-1]), peak
    train, out = os.path.join(folder, "text.txt"), tempfile.mkdtemp(dir=folder)
    with open(train, "w", encoding="utf-8") as file:
        file.write(text(options.steps))
    command = [options.kron_train, "train", "--task", "lm", "--model", options.model, "--train", train,
               "--max-len", str(TOKENS), "--batch", str(BATCH), "--limit-train", str(BATCH * options.steps),
               "--rank", str(RANK), "--alpha", str(ALPHA), "--epochs", "1", "--out", os.path.join(out, "run"),
               *ARMS[arm]]
    _, peak = run(command, options.threads)
    with open(os.path.join(out, "run", "log.csv"), encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)], peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kron_train")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", choices=["lora", "lokr"], help=argparse.SUPPRESS)
    parser.add_argument("--autocast", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--accelerate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", help="arms whose names begin so; may be repeated")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.arm:
        return torch_steps(options)
    arms = [arm for arm in ARMS if arm.startswith(tuple(options.only or [""]))]
    if importlib.util.find_spec("kron_lora") is None:
        arms = [arm for arm in arms if "--accelerate" not in ARMS[arm]]
    seconds, peaks = {arm: [] for arm in arms}, {arm: 0 for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            order = arms[round_ % len(arms):] + arms[:round_ % len(arms)]
            for arm in order:
                taken, peak = steps_of(arm, options, folder)
                seconds[arm] += taken[1:]
                peaks[arm] = max(peaks[arm], peak)
    print(f"{options.threads} threads, {options.rounds} rounds of {options.steps} steps\n")
    print("| program | ms a step, median (lowest … highest) | peak MiB |\n|---|--:|--:|")
    for arm in arms:
        low, middle, high = min(seconds[arm]), statistics.median(seconds[arm]), max(seconds[arm])
        print(f"| {arm} | {1e3 * middle:.0f} ({1e3 * low:.0f} … {1e3 * high:.0f}) | {peaks[arm]:.0f} |")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({arm: {"seconds": seconds[arm], "peak_mib": peaks[arm]} for arm in arms}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
