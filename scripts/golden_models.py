"""Tiny models of made-up weights, as transformers writes and computes them.

    python golden_models.py OUT

For each kind of model a folder OUT/NAME with config.json, weights and reference.json:
token ids of two texts, and hidden states (encoders) or logits (decoders) of every token
that is no padding, in float32. Two of them have a tokenizer.json too, and in reference.json
some texts with their ids, whole and cut to six.
"""

import json
import string
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

IDS = [[3, 41, 7, 7, 19, 60, 2, 33, 12], [5, 58, 23, 11]]
ENCODER = dict(vocab_size=61, max_position_embeddings=40)
DECODER = dict(
    vocab_size=61, hidden_size=24, intermediate_size=36, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=40, pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5000.0, factor=4.0, low_freq_factor=1.0,
    high_freq_factor=3.0, original_max_position_embeddings=16,
)

MODELS = {
    # name: (model, dtype of the file, shard size)
    "distilbert": (
        DistilBertForSequenceClassification(
            DistilBertConfig(dim=24, n_layers=2, n_heads=4, hidden_dim=36, **ENCODER)
        ), torch.float32, "1MB"),
    "bert": (
        BertForSequenceClassification(
            BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=36, **ENCODER)
        ), torch.float16, "1MB"),
    # Fewer heads of keys, an own last linear, in shards.
    "llama": (
        LlamaForCausalLM(LlamaConfig(
            num_key_value_heads=2, rope_parameters=dict(rope_type="default", rope_theta=700.0), **DECODER
        )), torch.float32, "20KB"),
    # Stretched rotations, heads wider than their share, biases, a tied last linear.
    "llama3": (
        LlamaForCausalLM(LlamaConfig(
            num_key_value_heads=1, rope_parameters=LLAMA3, head_dim=10, attention_bias=True, mlp_bias=True,
            tie_word_embeddings=True, **DECODER
        )), torch.bfloat16, "1MB"),
    "mistral": (
        MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=20, **DECODER)),
        torch.bfloat16, "1MB"),
}


def fill(model):
    """Weights large enough that every part of the model is seen in what comes out."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        weight.data = 1 + 0.3 * noise if is_norm else (0.3 if weight.dim() == 1 else 0.35) * noise


def reference(model, is_decoder):
    longest = max(map(len, IDS))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in IDS])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in IDS])
    with torch.no_grad():
        if is_decoder:
            out = model(input_ids=ids, attention_mask=mask).logits
        else:
            out = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [row[: len(text)].flatten().tolist() for row, text in zip(out, IDS)]


def wordpiece():
    """BERT's kind, of letters and five words: [CLS] before a text and [SEP] after it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = list(string.ascii_lowercase)
    pieces = special + ["the", "play", "weather", "book", "add"] + letters + ["##" + c for c in letters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(special)
    return tokenizer


def bpe():
    """LLaMA's kind: pairs of characters, <s> before a text and nothing after it."""
    pairs = "▁ t,h e,▁ a,i n,l l,e r,o n,▁ s,r e,o u,▁ p,▁ w,a t,a n,in g,▁t he".split(",")
    pairs = [tuple(pair.split(" ")) for pair in pairs]
    pieces = ["<unk>", "<s>", "</s>", "▁"] + list(string.ascii_lowercase + string.digits + ",.?!'")
    pieces += ["".join(pair) for pair in pairs]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


TOKENIZERS = {"bert": wordpiece, "llama": bpe}
TEXTS = ["the weather in paris, please", "play", "Book a table for 7!"]


def encoded(tokenizer):
    whole = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.enable_truncation(6)
    return [dict(text=t, ids=ids, cut=tokenizer.encode(t).ids) for t, ids in zip(TEXTS, whole)]


def main(out):
    for name, (model, dtype, shard) in MODELS.items():
        fill(model)
        # The numbers of the file, computed with in float32; the rotations are no numbers of the file.
        for weight in model.parameters():
            weight.data = weight.data.to(dtype).float()
        model.eval()
        folder = out / name
        values = reference(model, "ForCausalLM" in type(model).__name__)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        text = {"transformers": transformers.__version__, "ids": IDS, "values": values}
        if name in TOKENIZERS:
            tokenizer = TOKENIZERS[name]()
            assert tokenizer.get_vocab_size() == 61
            tokenizer.save(str(folder / "tokenizer.json"))
            text["encoded"] = encoded(tokenizer)
        rounded = json.dumps(text, separators=(",", ":"))
        (folder / "reference.json").write_text(rounded + "\n")


main(Path(sys.argv[1]))
