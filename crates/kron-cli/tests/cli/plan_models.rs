//! `kron plan` on models of whatever family, by the names and sizes of their tensors, and `kron inspect` on them.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{dir, refused, report};
use crate::foreign_names::file;
use crate::golden::{File, golden, serialize};
use crate::models::{run, sharded};

/// A model of a family that no configuration tells.
fn model() -> File {
    let layer = |i: usize, name: &str, shape| (format!("model.layers.{i}.{name}.weight"), Dtype::BF16, shape);
    let q: &[usize] = &[24, 16];
    file(&[
        ("model.embed_tokens.weight".into(), Dtype::BF16, &[50, 16]),
        layer(0, "self_attn.q_proj", q),
        layer(1, "self_attn.q_proj", q),
        layer(0, "mlp.down_proj", &[16, 40]),
        layer(1, "mlp.down_proj", &[16, 40]),
        ("model.layers.0.mlp.experts.gate_up_proj".into(), Dtype::BF16, &[4, 32, 16]),
        ("model.norm.weight".into(), Dtype::F32, &[16]),
        ("model.proj.weight".into(), Dtype::F16, &[12, 16, 1, 1]),
    ])
}

/// Name, d_out, d_in and count of each layer.
fn layers(report: &Value) -> Value {
    let layers = report["layers"].as_array().unwrap().iter();
    layers.map(|layer| json!([layer["name"], layer["d_out"], layer["d_in"], layer["count"]])).collect()
}

fn plan(path: &Path) -> Value {
    report(&[&"plan", &path, &"--rank", &"2", &"--a-out", &"4", &"--a-in", &"2"])
}

#[test]
fn a_model_needs_no_family() {
    let dir = dir();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, serialize(&model())).unwrap();
    let want = json!([["down_proj", 16, 40, 2], ["q_proj", 24, 16, 2], ["proj", 12, 16, 1]]);
    let whole = plan(&path);
    assert_eq!((&layers(&whole), &whole["hidden"]), (&want, &json!(16)));
    let notes = whole["notes"].to_string();
    assert!(notes.contains("model.embed_tokens.weight") && notes.contains("experts.gate_up_proj"), "{notes}");
    // (4, 2) with r = 2: 8 + 2·(4 + 20), 8 + 2·(6 + 8), 8 + 2·(3 + 8), twice, twice and once.
    assert_eq!(whole["methods"][0]["trained_params"], 2 * 56 + 2 * 36 + 30);
    // The same model in shards, by its folder and by its index, with a configuration of an unknown family.
    let (first, second) = model().into_iter().partition(|(name, _)| name.contains("layers.0"));
    let folder = sharded(dir.path(), &[first, second], json!({ "model_type": "new_family" }));
    for path in [&folder, &folder.join("model.safetensors.index.json")] {
        assert_eq!(layers(&plan(path)), want);
    }
    refused(&[&"plan", &folder.join("config.json")], 1, &["new_family", "kron plan MODEL"]);
    // GPT-2 stores d_in × d_out, which only its configuration tells.
    let gpt2 = dir.path().join("gpt2");
    std::fs::create_dir(&gpt2).unwrap();
    let weights = file(&[("h.0.attn.c_attn.weight".into(), Dtype::F32, &[16, 48])]);
    std::fs::write(gpt2.join("model.safetensors"), serialize(&weights)).unwrap();
    std::fs::write(gpt2.join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    assert_eq!(layers(&plan(&gpt2)), json!([["c_attn", 48, 16, 1]]));
    // A folder with a configuration alone is planned by it, as --config is.
    let alone = dir.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    let bert =
        json!({ "model_type": "bert", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2 });
    std::fs::write(alone.join("config.json"), bert.to_string()).unwrap();
    assert_eq!(layers(&plan(&alone))[0], json!(["query", 8, 8, 2]));
}

#[test]
fn a_gguf_is_planned_by_its_tensors() {
    let report = report(&[&"plan", &golden().join("tiny_llama.gguf")]);
    let names: Vec<&str> =
        report["layers"].as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap()).collect();
    for name in ["attn_q", "attn_output", "ffn_gate", "ffn_down"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"token_embd"), "{names:?}");
}

#[test]
fn what_is_no_model_is_refused_and_a_near_name_is_told() {
    let dir = dir();
    let path = dir.path().join("a.safetensors");
    refused(&[&"plan", &golden().join("model_llama/lora/adapter_model.safetensors")], 1, &["is an adapter"]);
    std::fs::write(&path, serialize(&file(&[("norm.weight".into(), Dtype::F32, &[4])]))).unwrap();
    refused(&[&"plan", &path], 1, &["has no linear layer"]);
    refused(&[&"plan", &"mistal-7b"], 2, &["did you mean mistral-7b?"]);
    refused(&[&"plan", &"mistral-7b", &"--layers", &"q_prj"], 2, &["did you mean q_proj?"]);
}

/// PEFT splits both sides of a square layer alike, so 16×2 has no LoKr form there, and 4×4 has one.
#[test]
fn formats_are_told_for_each_layer() {
    let formats = |a_out: &str, a_in: &str| {
        let split: [&dyn AsRef<std::ffi::OsStr>; 7] =
            [&"plan", &"mistral-7b", &"--format", &"--a-out", &a_out, &"--a-in", &a_in];
        report(&split)["layers"][0]["formats"].clone()
    };
    assert_eq!(formats("16", "2"), json!({ "peft_lokr": false, "lycoris": false }));
    assert_eq!(formats("4", "4"), json!({ "peft_lokr": true, "lycoris": true }));
    assert_eq!(report(&[&"plan", &"mistral-7b"])["layers"][0]["formats"], Value::Null);
    for args in [vec!["plan", "mistral-7b"], vec!["plan", "llama-3-8b", "--format"]] {
        let (_, text, _) = run(args);
        assert!(text.contains("PEFT LoKr") == text.contains("LyCORIS"), "{text}");
        for line in text.lines().filter(|line| line.starts_with('|')) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

/// A model is no adapter, and `inspect` says what `merge` and `plan` would see.
#[test]
fn inspect_says_what_a_file_holds() {
    let dir = dir();
    let path = dir.path().join("model.safetensors");
    let mut tensors = model();
    tensors.extend(file(&[("q8.weight".into(), Dtype::F32, &[3, 4])]));
    tensors.get_mut("q8.weight").unwrap().dtype = Dtype::I32;
    std::fs::write(&path, serialize(&tensors)).unwrap();
    let diagnosis = report(&[&"inspect", &path]);
    assert_eq!((&diagnosis["holds"], &diagnosis["tensors"]), (&json!("model"), &json!(9)));
    let groups = diagnosis["groups"].as_array().unwrap();
    let group =
        |what: &str| groups.iter().find(|group| group["what"] == what).unwrap_or_else(|| panic!("{what}"));
    let linear = group("weights of linear layers");
    assert_eq!(
        (&linear["tensors"], &linear["values"]),
        (&json!(6), &json!(2 * 24 * 16 + 2 * 16 * 40 + 12 * 16 + 12))
    );
    assert_eq!(group("embeddings")["first"], "model.embed_tokens.weight");
    assert_eq!(group("convolutions, stacked weights and others")["tensors"], 1);
    assert_eq!(layers(&diagnosis), layers(&plan(&path)));
    assert!(diagnosis["notes"].to_string().contains("weights in packed blocks"), "{diagnosis}");
    let commands = diagnosis["commands"].as_array().unwrap();
    let verdict = |command: &str| commands.iter().find(|verdict| verdict["commands"] == command).unwrap();
    assert_eq!(
        verdict("merge as BASE")["why"],
        "weights that take an adapter: 4 of BF16, 1 of F16; that do not: 1 of I32"
    );
    assert_eq!(verdict("plan"), &json!({ "commands": "plan", "accepted": true, "why": "5 linear layers" }));
    assert_eq!(verdict("convert, diff, quantise; merge as ADAPTER")["accepted"], false);
    // A method that is not read.
    let loha = file(&[
        ("lycoris_q.hada_w1_a".into(), Dtype::F32, &[6, 2]),
        ("lycoris_q.hada_w1_b".into(), Dtype::F32, &[2, 6]),
        ("lycoris_k.lokr_w1".into(), Dtype::F32, &[2, 2]),
        ("lycoris_k.lokr_w2".into(), Dtype::F32, &[3, 3]),
        ("lycoris_k.alpha".into(), Dtype::F32, &[]),
    ]);
    std::fs::write(&path, serialize(&loha)).unwrap();
    let diagnosis = report(&[&"inspect", &path]);
    assert_eq!(diagnosis["holds"], "adapter");
    assert!(diagnosis["refused"].as_str().unwrap().contains("lycoris_q.hada_w1_a is refused"), "{diagnosis}");
    let whats: Vec<&Value> =
        diagnosis["groups"].as_array().unwrap().iter().map(|group| &group["what"]).collect();
    assert_eq!(whats, ["alphas", "factors of LoHa", "factors of LoKr"]);
    // A file without any factor that is read is an adapter too.
    let alone: File = loha.into_iter().filter(|(name, _)| name.contains("hada")).collect();
    std::fs::write(&path, serialize(&alone)).unwrap();
    let diagnosis = report(&[&"inspect", &path]);
    assert_eq!((&diagnosis["holds"], &diagnosis["layers"]), (&json!("adapter"), &json!([])));
    // A damaged file is not looked at.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused(&[&"inspect", &path], 1, &["cut short"]);
}
