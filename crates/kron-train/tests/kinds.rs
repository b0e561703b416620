//! Folders of Qwen2, Qwen3 and ModernBERT are recognised, and train.

mod common;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use kron_core::philox;
use kron_train::Progress;
use kron_train::config::{Config, Method, Task};
use kron_train::data::Tokens;
use kron_train::model::{Files, Weights, build};
use kron_train::run::{Stop, run};
use serde_json::{Value, json};

/// Adds a seeded tensor: a matrix, the weight of a norm around 1, or a bias around 0.
fn put(tensors: &mut HashMap<String, Tensor>, name: String, shape: &[usize]) {
    let seed = name.bytes().fold(7u32, |seed, byte| seed.wrapping_mul(16_777_619) ^ u32::from(byte));
    let middle = if name.contains("norm") { 1.0 } else { 0.0 };
    let value =
        |i: u32| middle + 0.3 * (philox([i, 0, 0, 0], [seed, 1])[0] as f32 / (1u32 << 31) as f32 - 1.0);
    let count = shape.iter().product::<usize>() as u32;
    let tensor = Tensor::from_iter((0..count).map(value), &Device::Cpu).and_then(|t| t.reshape(shape));
    tensors.insert(name, tensor.expect("a tensor"));
}

fn write(folder: &Path, tokenizer: &str, config: &Value, tensors: &HashMap<String, Tensor>) {
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let tokenizer = common::data("models").join(tokenizer).join("tokenizer.json");
    std::fs::copy(tokenizer, folder.join("tokenizer.json")).expect("copied");
    candle_core::safetensors::save(tensors, folder.join("model.safetensors")).expect("written");
}

/// Writes a decoder of two blocks, with the biases and norms of its kind and no others.
fn decoder(folder: &Path, kind: &str) {
    let (hidden, wide, heads, keys) = (24, 36, 4, 2);
    let head = if kind == "qwen3" { 10 } else { hidden / heads };
    let mut config = json!({
        "model_type": kind, "vocab_size": 61, "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": keys, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40, "tie_word_embeddings": true, "sliding_window": 4, "use_sliding_window": false
    });
    let mut tensors = HashMap::new();
    put(&mut tensors, "model.embed_tokens.weight".into(), &[61, hidden]);
    put(&mut tensors, "model.norm.weight".into(), &[hidden]);
    for i in 0..2 {
        let mut add =
            |name: &str, shape: &[usize]| put(&mut tensors, format!("model.layers.{i}.{name}"), shape);
        for (name, d_out, d_in) in [
            ("self_attn.q_proj", heads * head, hidden),
            ("self_attn.k_proj", keys * head, hidden),
            ("self_attn.v_proj", keys * head, hidden),
            ("self_attn.o_proj", hidden, heads * head),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ] {
            add(&format!("{name}.weight"), &[d_out, d_in]);
            if kind == "qwen2" && ["q_proj", "k_proj", "v_proj"].iter().any(|end| name.ends_with(end)) {
                add(&format!("{name}.bias"), &[d_out]);
            }
        }
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        if kind == "qwen3" {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
    }
    if kind == "qwen3" {
        config["head_dim"] = head.into();
    }
    write(folder, "llama", &config, &tensors);
}

/// Writes an encoder of three blocks with a classifier's names and its head.
fn modern_bert(folder: &Path) {
    let (hidden, wide) = (24, 36);
    let config = json!({
        "model_type": "modernbert", "vocab_size": 61, "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 40, "local_attention": 8
    });
    let mut tensors = HashMap::new();
    put(&mut tensors, "model.embeddings.tok_embeddings.weight".into(), &[61, hidden]);
    for norm in ["model.embeddings.norm", "model.final_norm", "head.norm"] {
        put(&mut tensors, format!("{norm}.weight"), &[hidden]);
    }
    put(&mut tensors, "head.dense.weight".into(), &[hidden, hidden]);
    put(&mut tensors, "classifier.weight".into(), &[3, hidden]);
    for i in 0..3 {
        let mut add =
            |name: &str, shape: &[usize]| put(&mut tensors, format!("model.layers.{i}.{name}.weight"), shape);
        add("attn.Wqkv", &[3 * hidden, hidden]);
        add("attn.Wo", &[hidden, hidden]);
        add("mlp.Wi", &[2 * wide, hidden]);
        add("mlp.Wo", &[hidden, wide]);
        add("mlp_norm", &[hidden]);
        if i > 0 {
            add("attn_norm", &[hidden]);
        }
    }
    write(folder, "bert", &config, &tensors);
}

/// Runs some epochs, and returns the mean losses of the first and the last quarter of the steps.
fn losses(config: &Config) -> [f32; 2] {
    let (weights, data) = common::load(config);
    let outcome = run(config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    let losses: Vec<f32> = outcome.steps.iter().map(|step| step.loss).collect();
    let part = losses.len() / 4;
    assert!(part > 1 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    [mean(&losses[..part]), mean(&losses[losses.len() - part..])]
}

#[test]
fn qwen_decoders_train() {
    for kind in ["qwen2", "qwen3"] {
        let folder = tempfile::tempdir().expect("a folder");
        decoder(folder.path(), kind);
        let text = folder.path().join("text.txt");
        std::fs::write(&text, "ab ba abba ab b a\n\n".replace([' ', '\n'], "").repeat(40)).expect("written");
        for (method, checkpointing) in [(Method::Kron, false), (Method::Lora, true), (Method::Full, false)] {
            let mut config = common::config(method);
            (config.task, config.data.limit_train, config.model) = (Task::Lm, 0, folder.path().into());
            (config.data.train, config.data.validation, config.data.max_len) = (text.clone(), None, 12);
            (config.adapter.a_out, config.adapter.a_in) =
                if method == Method::Kron { (2, 2) } else { (0, 0) };
            (config.train.lr, config.train.checkpointing) = (1e-2, checkpointing);
            let [first, last] = losses(&config);
            assert!(last < 0.95 * first, "{kind}, {method:?}: {first} to {last}");
        }
    }
}

#[test]
fn modern_bert_trains() {
    let folder = tempfile::tempdir().expect("a folder");
    modern_bert(folder.path());
    for method in [Method::Kron, Method::Full] {
        let mut config = common::config(method);
        config.model = folder.path().into();
        (config.data.max_len, config.train.epochs) = (32, 8);
        let [first, last] = losses(&config);
        assert!(last < 0.95 * first, "{method:?}: {first} to {last}");
    }
    // The body's names lack the prefix `model.`, and the head is no part of the body.
    let files = Files::find(folder.path()).expect("a model");
    let weights = Weights::read(&files).expect("weights");
    assert!(weights.has_a("layers.2.attn.Wqkv.weight") && !weights.has_a("classifier.weight"));
    let body = build(&weights, &kron_candle::Inject::nothing()).expect("a body");
    let refused = body.hidden(&Tokens::new(&[vec![1; 41]]), None).expect_err("too long").to_string();
    assert!(refused.contains("41 tokens, but the model has 40 positions"), "{refused}");
}
