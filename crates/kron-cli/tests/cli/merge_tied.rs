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

/// Two weights are two when their bytes differ, though the configuration says that they are one.
#[test]
fn weights_that_differ_are_two_whatever_the_configuration_says() {
    let dir = dir();
    let file = File::from([
        (EMBEDDING.into(), tensor(Dtype::BF16, &[20, 6], 1)),
        (HEAD.into(), tensor(Dtype::BF16, &[20, 6], 2)),
    ]);
    let base = sharded(dir.path(), &[file], config(Some(true)));
    let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
    let (adapter, _) = adapter(dir.path(), &[("lm_head", shape)]);
    let out = dir.path().join("out");
    let printed = report(&[&"merge", &base, &adapter, &out]);
    assert!(printed["notes"].to_string().contains("differ, though the configuration says"), "{printed}");
    assert_eq!(json_of(out.join("config.json"))["tie_word_embeddings"], json!(false));
    let name = "model-00001-of-00001.safetensors";
    let (before, after) = (load(&base.join(name)), load(&out.join(name)));
    assert_eq!(after[EMBEDDING].bytes, before[EMBEDDING].bytes);
    assert_ne!(after[HEAD].bytes, before[HEAD].bytes);
}

/// An adapter of the head of a tied model keeps its name; a merge unties.
#[test]
fn a_tied_head_has_its_name_in_convert_and_diff() {
    let dir = dir();
    let base = model(dir.path(), false, Some(true));
    let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
    let (adapter, _) = adapter(dir.path(), &[("lm_head", shape), ("model.other", shape)]);
    let out = dir.path().join("lora");
    let json = report(&[&"convert", &adapter, &out, &"--to", &"lora", &"--base", &base]);
    assert_eq!(json["layers"][0]["module"], "lm_head");
    let json = report(&[&"diff", &adapter, &out, &"--base", &base]);
    assert!(json["total"]["relative_distance"].as_f64().unwrap() < 1e-6, "{json}");
}

/// PEFT saves copies of both where the vocabulary grew; the head's equals the embedding of a tied model.
#[test]
fn a_copy_of_a_tied_head_is_compared_with_the_embedding() {
    let dir = dir();
    let base = model(dir.path(), false, Some(true));
    let name = |parameter: &str| format!("base_model.model.{parameter}");
    for (seed, says) in [(1, None), (5, Some("is a copy of a base weight, but differs from"))] {
        let folder = dir.path().join(format!("adapter-{seed}"));
        std::fs::create_dir(&folder).unwrap();
        let tensors = File::from([
            (name("model.other.lora_A.weight"), tensor(Dtype::F32, &[2, 6], 7)),
            (name("model.other.lora_B.weight"), tensor(Dtype::F32, &[20, 2], 8)),
            (name(HEAD), tensor(Dtype::BF16, &[20, 6], seed)),
        ]);
        std::fs::write(folder.join("adapter_model.safetensors"), serialize(&tensors)).unwrap();
        let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["other"] });
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let out = dir.path().join(format!("out-{seed}"));
        match says {
            Some(says) => assert_merge_fails(merge(&base, &folder, &out, &[]), 1, &[says]),
            None => {
                let printed = report(&[&"merge", &base, &folder, &out]);
                let note = printed["notes"].to_string();
                assert!(note.contains("lm_head.weight") && note.contains(EMBEDDING), "{printed}");
            }
        }
    }
}

/// Trained tokens change both names of a weight that stays one, as PEFT does.
#[test]
fn tokens_of_a_tied_model_stay_tied() {
    let dir = dir();
    let folder = dir.path().join("adapter");
    std::fs::create_dir(&folder).unwrap();
    let name = |parameter: &str| format!("base_model.model.{parameter}");
    let rows = tensor(Dtype::BF16, &[2, 6], 9);
    let tensors = File::from([
        (name("model.other.lora_A.weight"), tensor(Dtype::F32, &[2, 6], 7)),
        (name("model.other.lora_B.weight"), tensor(Dtype::F32, &[20, 2], 8)),
        (name("model.embed_tokens.token_adapter.trainable_tokens_delta"), rows.clone()),
    ]);
    std::fs::write(folder.join("adapter_model.safetensors"), serialize(&tensors)).unwrap();
    let peft = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["other"], "trainable_token_indices": [17, 3]
    });
    std::fs::write(folder.join("adapter_config.json"), peft.to_string()).unwrap();
    for (head, tied, both) in
        [(false, Some(true), false), (true, Some(true), true), (true, Some(false), false)]
    {
        let (here, out) = (tempfile::tempdir().unwrap(), dir.path().join(format!("out-{head}-{tied:?}")));
        let base = model(here.path(), head, tied);
        report(&[&"merge", &base, &folder, &out]);
        assert_eq!(json_of(out.join("config.json")), json_of(base.join("config.json")));
        let name = "model-00002-of-00002.safetensors";
        let (before, after) = (load(&base.join(name)), load(&out.join(name)));
        let want = |changed: bool| {
            let mut bytes = before[EMBEDDING].bytes.clone();
            for (row, at) in [17, 3].into_iter().enumerate().filter(|_| changed) {
                bytes[at * 12..][..12].copy_from_slice(&rows.bytes[row * 12..][..12]);
            }
            bytes
        };
        assert_eq!(after[EMBEDDING].bytes, want(true));
        assert_eq!(after.get(HEAD).map(|head| &head.bytes), head.then(|| want(both)).as_ref());
    }
}
