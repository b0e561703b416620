"""kron-train's log-probabilities against PyTorch's; run by check-logits.sh.

    python check_logits.py KRON_TRAIN MODEL.gguf SCRATCH

SCRATCH/hf is the model as transformers reads it. Both sides compute in float32.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

# Bound on a log-probability's error, relative to its size and at least to 1: sums of some thousand float32 products
# in another order, through all blocks.
BOUND = 1e-3
LIKELIEST = 50
TOKENS = 8

PROMPTS = [
    "The largest river of South America is the Amazon. The capital of France is",
    "Once",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "1, 2, 3, 4, 5, 6,",
    "Ça va très bien, merci. 日本語の",
]

USER = {"role": "user", "content": "What is the capital of France?"}
CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "Answer in one word."}, USER],
    [USER, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Spain?"}],
    [{"role": "user", "content": "  Two\n\nlines, a \ttab and spaces  "}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "{{ 1 + 1 }} <b>&amp;</b> \"quoted\" 'text'"}],
    [{"role": "user", "content": "Emoji 🎉, ünïcode and a spelt <|im_end|>"}],
]

failed = 0


def check(good, line):
    global failed
    print(f"{'ok  ' if good else 'FAIL'} {line}")
    failed += not good


def kron_train(program, model, path, lines, *options):
    """Generates greedily for each line; returns the result of each."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [program, "generate", model, "--prompts", str(path), *options]
    command += ["--max-tokens", str(TOKENS), "--log-probs", str(LIKELIEST)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def differences(model, prompt, ours):
    """Returns the largest relative difference at the places of a text, and the number of places and of equal choices."""
    ids = ours["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    theirs = torch.log_softmax(logits.double(), -1)
    largest, same = 0.0, 0
    for place, (id, likeliest) in enumerate(zip(ids, ours["log_probs"], strict=True)):
        assert len(likeliest) == LIKELIEST
        for token, ln in likeliest:
            want = theirs[place, token].item()
            largest = max(largest, abs(ln - want) / max(1.0, abs(want)))
        same += int(theirs[place].argmax()) == id
    return largest, len(ids), same


def compare(what, model, prompts, results):
    largest, places, same = 0.0, 0, 0
    equal = sum(len(prompt) == ours["prompt_tokens"] for prompt, ours in zip(prompts, results, strict=True))
    check(equal == len(prompts), f"{what}: {equal} of {len(prompts)} have transformers' number of tokens")
    for prompt, ours in zip(prompts, results):
        if len(prompt) == ours["prompt_tokens"]:
            off, count, right = differences(model, prompt, ours)
            largest, places, same = max(largest, off), places + count, same + right
    check(places > 2 * len(prompts) and same == places, f"{what}: {same} of {places} greedy tokens are equal")
    check(places > 0 and largest <= BOUND, f"{what}: log-probabilities differ by {largest:.1e}, relatively")


def main():
    program, gguf, scratch = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(scratch / "hf")
    model = AutoModelForCausalLM.from_pretrained(scratch / "hf", dtype=torch.float32)
    results = kron_train(program, gguf, scratch / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    compare("prompts", model, [tokenizer(text)["input_ids"] for text in PROMPTS], results)
    # Equal numbers of tokens with equal probabilities after them: the template's texts are equal.
    lines = [{"messages": messages} for messages in CONVERSATIONS]
    results = kron_train(program, gguf, scratch / "chats.jsonl", lines, "--chat")
    texts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for messages in CONVERSATIONS
    ]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    compare("conversations", model, prompts, results)
    # A text that differs by one token has other probabilities, so that the comparison sees it.
    other = [prompt[:-3] + [prompt[-3] + 1] + prompt[-2:] for prompt in prompts]
    least = min(differences(model, prompt, ours)[0] for prompt, ours in zip(other, results))
    check(least > 10 * BOUND, f"another token in the prompt changes them by {least:.1e} at least")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
