//! `kron merge` into an embedding or a head that are one weight.

use std::path::{Path, PathBuf};

use kron_core::{KronShape, LayerDims};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{dir, report};
use crate::golden::{File, serialize};
use crate::models::{adapter, assert_merge_fails, delta, load, merge, sharded, tensor, values};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn config(tied: Option<bool>) -> Value {
    match tied {
        None => json!({ "model_type": "of-my-own", "hidden_size": 6 }),
        Some(tied) => json!({ "model_type": "llama", "tie_word_embeddings": tied, "rms_norm_eps": 1e-5 }),
    }
}

/// Writes a model of two shards: a norm, and the embedding with or without a head of the same bytes.
fn model(dir: &Path, head: bool, tied: Option<bool>) -> PathBuf {
    let first = File::from([("model.norm.weight".into(), tensor(Dtype::F32, &[6], 3))]);
    let mut second = File::from([(EMBEDDING.into(), tensor(Dtype::BF16, &[20, 6], 1))]);
    if head {
        second.insert(HEAD.into(), tensor(Dtype::BF16, &[20, 6], 1));
    }
    second.insert("model.other.weight".into(), tensor(Dtype::F32, &[20, 6], 2));
    sharded(dir, &[first, second], config(tied))
}

fn json_of(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_merge_into_one_of_them_unties() {
    for (head, tied) in [(false, Some(true)), (true, Some(true)), (true, None), (true, Some(false))] {
        for (module, of) in
            [("model.embed_tokens", EMBEDDING), ("lm_head", HEAD), ("embed_tokens", EMBEDDING)]
        {
            let dir = dir();
            let base = model(dir.path(), head, tied);
            let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
            let (file, ours) = adapter(dir.path(), &[(module, shape)]);
            let out = dir.path().join("out");
            let printed = report(&[&"merge", &base, &file, &out]);
            let notes = printed["notes"].to_string();
            assert!(
                notes.contains("were one weight") && notes.contains("tie_word_embeddings is false"),
                "{notes}"
            );
            let mut want = config(tied);
            want["tie_word_embeddings"] = json!(false);
            assert_eq!(json_of(out.join("config.json")), want);

            let name = "model-00002-of-00002.safetensors";
            let (before, after) = (load(&base.join(name)), load(&out.join(name)));
            assert_eq!(
                printed["bytes"],
                json!(
                    ["model-00001-of-00002.safetensors", name]
                        .map(|name| out.join(name).metadata().unwrap().len())
                        .iter()
                        .sum::<u64>()
                )
            );
            assert_eq!(after["model.other.weight"].bytes, before["model.other.weight"].bytes);
            for tensor in [EMBEDDING, HEAD] {
                let (was, is) = (values(&before[EMBEDDING]), values(&after[tensor]));
                assert_eq!(after[tensor].shape, [20, 6]);
                if tensor != of {
                    assert!(was == is, "{tensor} changed beside {of}");
                    continue;
                }
                for ((w, got), (d, _)) in was.iter().zip(is).zip(delta(&ours.layers()[0])) {
                    assert!((got - (w + d)).abs() <= 2f64.powi(-8) * (w + d).abs() + 1e-6, "{tensor}");
                }
            }
            let index = json_of(out.join("model.safetensors.index.json"));
            assert_eq!(index["weight_map"][HEAD], json!(name));
            assert_eq!(index["metadata"]["total_size"], json!(if head { 0 } else { 240 }));
        }
    }
}

/// A model that cannot be untied is refused, and the config of one whose tensors are not touched stays.
#[test]
fn what_cannot_be_untied_is_refused() {
    let dir = dir();
    let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
    let (file, _) = adapter(dir.path(), &[("model.embed_tokens", shape)]);
    let pair = |seed: u64| {
        File::from([
            (EMBEDDING.into(), tensor(Dtype::BF16, &[20, 6], 1)),
            (HEAD.into(), tensor(Dtype::BF16, &[20, 6], seed)),
        ])
    };
    let [one, out] = ["one.safetensors", "out.safetensors"].map(|name| dir.path().join(name));
    std::fs::write(&one, serialize(&pair(1))).unwrap();
    assert_merge_fails(merge(&one, &file, &out, &[]), 1, &["model.embed_tokens.weight is tied"]);
    // Two weights are two, where no configuration says otherwise.
    std::fs::write(&one, serialize(&pair(2))).unwrap();
    report(&[&"merge", &one, &file, &out]);
    assert_eq!(load(&out)[HEAD].bytes, pair(2)[HEAD].bytes);
    // An embedding alone may be the head too.
    let alone = File::from([(EMBEDDING.into(), tensor(Dtype::BF16, &[20, 6], 1))]);
    std::fs::write(&one, serialize(&alone)).unwrap();
    let printed = report(&[&"merge", &one, &file, &out, &"--force"]);
    assert!(printed["notes"].to_string().contains("no config.json says whether a head is tied"), "{printed}");

    let base = model(dir.path(), false, Some(true));
    let (file, _) = adapter(dir.path(), &[("model.other", shape)]);
    let merged = dir.path().join("merged");
    assert_eq!(report(&[&"merge", &base, &file, &merged])["notes"], json!([]));
    assert_eq!(
        std::fs::read(merged.join("config.json")).unwrap(),
        std::fs::read(base.join("config.json")).unwrap()
    );
    assert!(!load(&merged.join("model-00002-of-00002.safetensors")).contains_key(HEAD));
}

/// A model with vision, whose embedding has another name than in the adapter of its text model.
#[test]
fn names_are_the_model_s_before_they_are_compared() {
    let dir = dir();
    let embedding = "model.language_model.embed_tokens.weight";
    let q = "model.language_model.layers.0.self_attn.q_proj.weight";
    let file = File::from([
        (embedding.into(), tensor(Dtype::F32, &[20, 6], 1)),
        (HEAD.into(), tensor(Dtype::F32, &[20, 6], 1)),
        (q.into(), tensor(Dtype::F32, &[6, 6], 2)),
        ("model.visual.blocks.0.attn.qkv.weight".into(), tensor(Dtype::F32, &[18, 6], 3)),
    ]);
    let base = sharded(dir.path(), &[file], json!({ "model_type": "of-my-own" }));
    let shape = |d_out| KronShape::lora(LayerDims { d_out, d_in: 6 }, 2).unwrap();
    let layers = [("model.embed_tokens", shape(20)), ("model.layers.0.self_attn.q_proj", shape(6))];
    let (adapter, _) = adapter(dir.path(), &layers);
    let out = dir.path().join("out");
    let printed = report(&[&"merge", &base, &adapter, &out]);
    assert!(printed["notes"].to_string().contains("were one weight"), "{printed}");
    assert_eq!(json_of(out.join("config.json"))["tie_word_embeddings"], json!(false));
    let name = "model-00001-of-00001.safetensors";
    let (before, after) = (load(&base.join(name)), load(&out.join(name)));
    assert_eq!(after[HEAD].bytes, before[HEAD].bytes);
    assert_ne!(after[embedding].bytes, before[embedding].bytes);
}

#[test]
fn an_embedding_whose_head_nothing_tells_of_has_a_note() {
    let dir = dir();
    let base = model(dir.path(), false, None);
    let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
    let (adapter, _) = adapter(dir.path(), &[("model.embed_tokens", shape)]);
    let printed = report(&[&"merge", &base, &adapter, &dir.path().join("out")]);
    assert!(printed["notes"].to_string().contains("says whether a head is tied"), "{printed}");
}
