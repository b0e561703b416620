//! `kron merge` of an adapter with trained tensors: they take the place of the model's.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use kron_adapter::{Adapter, IfExists, TrainedTensor};
use kron_core::{KronShape, LayerDims};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{dir, peft, report, same};
use crate::golden::{File, Tensor, golden, serialize};
use crate::models::{adapter, assert_merge_fails, load, merge, sharded, tensor, values};
use crate::trained::{folder, notes, ours};

const Q: &str = "model.q_proj";

fn trained(name: &str, shape: &[usize], seed: u64) -> TrainedTensor {
    let values = values(&tensor(Dtype::F32, shape, seed));
    TrainedTensor::new(name, shape, values.iter().map(|v| *v as f32).collect()).unwrap()
}

/// Writes an adapter of one layer, 6 × 10, with these trained tensors.
fn with_tensors(dir: &Path, module: &str, tensors: Vec<TrainedTensor>) -> (PathBuf, Adapter) {
    let (path, adapter) =
        adapter(dir, &[(module, KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 2).unwrap())]);
    let adapter = adapter.with_trained_tensors(tensors).unwrap();
    adapter.write(&path, IfExists::Replace).unwrap();
    (path, adapter)
}

/// Rounds values once to a dtype.
fn rounded(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn merged(base: &Path, adapter: &Path, out: &Path, flags: &[&str]) -> Value {
    let (code, text, err) = merge(base, adapter, out, &[flags, &["--json"]].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    serde_json::from_str(&text).unwrap()
}

/// Replaces tensors of every dtype and rank; one is longer than a band.
#[test]
fn trained_tensors_replace_the_model_s_rounded_once() {
    let dir = dir();
    let long = [1100, 3, 331];
    let shards = [
        File::from([
            (format!("{Q}.weight"), tensor(Dtype::F32, &[6, 10], 1)),
            (format!("{Q}.gain"), tensor(Dtype::F32, &[6], 2)),
            ("model.norm.weight".into(), tensor(Dtype::BF16, &[48], 3)),
            ("model.conv.weight".into(), tensor(Dtype::F32, &long, 4)),
        ]),
        File::from([
            ("score.bias".into(), tensor(Dtype::F32, &[7], 5)),
            ("score.weight".into(), tensor(Dtype::F16, &[7, 11], 6)),
            ("temperature".into(), tensor(Dtype::F32, &[], 7)),
        ]),
    ];
    let base = sharded(dir.path(), &shards, json!({ "model_type": "of-my-own" }));
    let tensors = vec![
        trained("model.norm.weight", &[48], 13),
        trained("model.conv.weight", &long, 14),
        trained("score.weight", &[7, 11], 16),
        trained("temperature", &[], 17),
    ];
    let (file, ours) = with_tensors(dir.path(), Q, tensors);
    let [out, alone] = ["out", "alone"].map(|name| dir.path().join(name));
    let printed = merged(&base, &file, &out, &[]);
    assert_eq!((&printed["layers"], &printed["replaced"]), (&json!(1), &json!(4)));
    let note = "--factors-only leaves these trained tensors out: model.conv.weight and 3 more";
    let printed = merged(&base, &file, &alone, &["--factors-only"]);
    assert_eq!((notes(&printed), &printed["replaced"]), (vec![note], &json!(0)));
    let (text, plain) = (
        merge(&base, &file, &out, &["--force"]).1,
        merge(&base, &file, &alone, &["--force", "--factors-only"]).1,
    );
    assert!(
        text.contains("layers folded: 1, tensors replaced: 4, files") && !plain.contains("replaced"),
        "{text}{plain}"
    );
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", i + 1);
        let [got, folded] = [&out, &alone].map(|out| load(&out.join(&name)));
        for (name, before) in shard {
            let want = match ours.trained_tensor(name) {
                Some(trained) => rounded(trained.values(), before.dtype),
                None => folded[name].bytes.clone(),
            };
            assert!(got[name].bytes == want, "{name}");
            let is_layer = *name == format!("{Q}.weight");
            assert_eq!(folded[name].bytes == before.bytes, !is_layer, "{name}");
        }
    }
}

/// A change of the leading component is made to the names that the model has only after it.
#[test]
fn names_change_as_those_of_the_layers_do() {
    for (module, norm, head, q) in [
        ("model.q", "model.norm.weight", "score.weight", "q"),
        ("q", "norm.weight", "score.weight", "model.q"),
    ] {
        let dir = dir();
        let base = dir.path().join("base.safetensors");
        let of_base = format!("{}norm.weight", q.strip_suffix('q').unwrap());
        let file = File::from([
            (format!("{q}.weight"), tensor(Dtype::F32, &[6, 10], 1)),
            (of_base.clone(), tensor(Dtype::F32, &[5], 2)),
            (head.into(), tensor(Dtype::F32, &[2, 3], 3)),
        ]);
        std::fs::write(&base, serialize(&file)).unwrap();
        let (adapter, ours) =
            with_tensors(dir.path(), module, vec![trained(norm, &[5], 12), trained(head, &[2, 3], 13)]);
        let out = dir.path().join("out.safetensors");
        assert_eq!(merged(&base, &adapter, &out, &[])["replaced"], json!(2));
        let got = load(&out);
        for (theirs, own) in [(of_base.as_str(), norm), (head, head)] {
            assert!(got[theirs].bytes == rounded(ours.trained_tensor(own).unwrap().values(), Dtype::F32));
        }
    }
}

#[test]
fn tensors_without_a_place_are_refused_and_nothing_is_written() {
    let dir = dir();
    let model = |tied: bool| {
        let mut tensors = File::from([
            (format!("{Q}.weight"), tensor(Dtype::F32, &[6, 10], 1)),
            ("model.embed_tokens.weight".into(), tensor(Dtype::F32, &[9, 4], 2)),
            ("model.norm.weight".into(), tensor(Dtype::F16, &[4], 3)),
            ("model.steps".into(), Tensor { dtype: Dtype::I64, shape: vec![1], bytes: vec![0; 8] }),
        ]);
        if !tied {
            tensors.insert("lm_head.weight".into(), tensor(Dtype::F32, &[9, 4], 4));
        }
        let place = dir.path().join(if tied { "tied" } else { "untied" });
        std::fs::create_dir(&place).unwrap();
        let config = json!({ "model_type": "llama", "tie_word_embeddings": tied });
        sharded(&place, &[tensors], config)
    };
    let (tied, untied, out) = (model(true), model(false), dir.path().join("out"));
    let large = TrainedTensor::new("model.norm.weight", [4], vec![1.0, 1e6, 2.0, 3.0]).unwrap();
    for (base, tensor, says) in [
        (
            &untied,
            trained("score.weight", &[2, 4], 1),
            "trained tensor score.weight matches no tensor; near are ",
        ),
        (&untied, trained("model.norm.bias", &[4], 1), "near are model.norm.weight, "),
        (&untied, trained("lm_head.weight", &[4, 9], 1), "is [9, 4], but the trained tensor is [4, 9]"),
        (&untied, trained("model.steps", &[1], 1), "model.steps is I64"),
        (&untied, large, "a value of the trained tensor in rows 0..1 is not finite in f16"),
    ] {
        let (adapter, _) = with_tensors(dir.path(), Q, vec![tensor]);
        let result = merge(base, &adapter, &out, &[]);
        let hint = !result.2.contains("not finite");
        assert_eq!(result.2.contains("; --factors-only takes the layers alone"), hint, "{}", result.2);
        assert_merge_fails(result, 1, &[says]);
        assert!(!out.join("model-00001-of-00001.safetensors").exists());
        let _ = std::fs::remove_dir_all(&out);
    }
    // An untied model takes both, and a tied one is untied.
    let both = ["lm_head.weight", "model.embed_tokens.weight"].map(|name| trained(name, &[9, 4], 8));
    let (adapter, _) = with_tensors(dir.path(), Q, both.into());
    assert_eq!(merged(&untied, &adapter, &out, &[])["replaced"], json!(2));
    assert_eq!(merged(&tied, &adapter, &out, &["--force"])["replaced"], json!(2));
    // Layers alone leave it tied.
    merged(&tied, &adapter, &out, &["--force", "--factors-only"]);
    assert!(!load(&out.join("model-00001-of-00001.safetensors")).contains_key("lm_head.weight"));
}

/// A head that the model lacks is left out only on request; PEFT's own golden model has none.
#[test]
fn the_layers_can_be_merged_without_a_head() {
    let out = dir();
    let base = golden().join("model_llama/base.safetensors");
    let [refused, alone, plain] = ["refused", "alone", "plain"].map(|name| out.path().join(name));
    let adapter = ours("lokr", out.path());
    let says = ["score.bias matches no tensor", "score.weight matches no tensor", "--factors-only"];
    assert_merge_fails(merge(&base, &adapter, &refused, &[]), 1, &says);
    assert!(!refused.exists());
    merged(&base, &adapter, &alone, &["--factors-only"]);
    assert_eq!(merge(&base, &peft("lokr"), &plain, &[]).0, 0);
    same(&load(&alone), &load(&plain));
    assert_eq!(merged(&base, &peft("lokr"), &plain, &["--factors-only", "--force"])["notes"], json!([]));
}

/// The merge of a GGUF is that of its dequantised weights, the replaced rows of q's order included.
#[test]
fn a_gguf_takes_trained_tensors() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let model = golden().join("tiny_llama.gguf");
    let shape = KronShape::lora(LayerDims { d_out: 32, d_in: 64 }, 2).unwrap();
    let (file, plain) = adapter(dir.path(), &[("model.layers.0.mlp.down_proj", shape)]);
    let q = "model.layers.0.self_attn.q_proj.weight";
    let tensors = vec![trained("model.norm.weight", &[32], 1), trained(q, &[32, 32], 2)];
    plain.with_trained_tensors(tensors).unwrap().write(&file, IfExists::Replace).unwrap();
    report(&[&"convert", &model, &at("base"), &"--to", &"hf"]);
    merged(&at("base/model.safetensors"), &file, &at("want.safetensors"), &[]);
    for name in ["got.safetensors", "got.gguf"] {
        assert_eq!(merged(&model, &file, &at(name), &["--dtype", "f32"])["replaced"], json!(2));
    }
    report(&[&"convert", &at("got.gguf"), &at("got"), &"--to", &"hf"]);
    let want = load(&at("want.safetensors"));
    assert_ne!(want[q].bytes, load(&at("base/model.safetensors"))[q].bytes);
    same(&load(&at("got.safetensors")), &want);
    same(&load(&at("got/model.safetensors")), &want);
}

/// Another value of a trained tensor is another merge.
#[test]
fn a_merge_is_not_resumed_with_other_trained_tensors() {
    let (dir, value) = (dir(), |v: f32| TrainedTensor::new("model.norm.weight", [2], vec![v, 1.0]).unwrap());
    let shards = [
        File::from([(format!("{Q}.weight"), tensor(Dtype::F32, &[6, 10], 1))]),
        File::from([("model.norm.weight".into(), tensor(Dtype::F16, &[2], 2))]),
    ];
    let base = sharded(dir.path(), &shards, json!({}));
    let out = dir.path().join("out");
    // The second shard fails, after the first.
    let (adapter, _) = with_tensors(dir.path(), Q, vec![value(1e6)]);
    assert_merge_fails(merge(&base, &adapter, &out, &[]), 1, &["is not finite in f16"]);
    with_tensors(dir.path(), Q, vec![value(1e7)]);
    assert_merge_fails(merge(&base, &adapter, &out, &["--resume"]), 2, &["is of another merge"]);
    with_tensors(dir.path(), Q, vec![value(1e6)]);
    assert_merge_fails(merge(&base, &adapter, &out, &["--resume"]), 1, &["is not finite in f16"]);
}

/// A PEFT folder is merged as it is.
#[test]
fn modules_to_save_of_a_peft_folder_are_merged() {
    let dir = dir();
    let base = dir.path().join("base.safetensors");
    let mut file = load(&golden().join("model_llama/base.safetensors"));
    for (name, shape) in [("score.weight", &[3, 8][..]), ("score.bias", &[3])] {
        file.insert(name.into(), tensor(Dtype::F32, shape, 31));
    }
    std::fs::write(&base, serialize(&file)).unwrap();
    let adapter = folder("lora", json!(["score"]), &crate::trained::head());
    let out = dir.path().join("out.safetensors");
    assert_eq!(merged(&base, adapter.path(), &out, &[])["replaced"], json!(2));
    let got = load(&out);
    for (name, tensor) in crate::trained::head() {
        assert!(got[name].bytes == tensor.bytes && file[name].bytes != tensor.bytes, "{name}");
    }
}
