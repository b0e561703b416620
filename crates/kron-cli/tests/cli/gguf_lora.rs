//! `kron convert --to gguf-lora`: an adapter for llama.cpp, and one of those read.

use std::path::{Path, PathBuf};

use kron_core::{KronShape, LayerDims, Split};
use serde_json::json;

use crate::adapters::{convert, dir, ours, peft, refused, report, same, scaling, tensors};
use crate::golden::golden;
use crate::models::names;

fn model() -> PathBuf {
    golden().join("tiny_llama.gguf")
}

/// Writes an adapter for the model: a LoRA, and a Kron-LoRA whose equal LoRA has rank 4.
fn adapter(path: &Path) {
    let q = KronShape::lora(LayerDims { d_out: 32, d_in: 32 }, 3).unwrap();
    let k = LayerDims { d_out: 16, d_in: 32 };
    let k = KronShape::kron(k, Split { a_out: 2, a_in: 4 }, 2).unwrap();
    let [q_name, k_name] = ["q", "k"].map(|part| format!("model.layers.0.self_attn.{part}_proj"));
    ours(&[(&q_name, q, scaling(6.0, 3)), (&k_name, k, scaling(6.0, 2))], path);
}

#[test]
fn the_file_is_an_adapter_for_every_command() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let (from, lora, half) = (at("adapter.safetensors"), at("lora.gguf"), at("half.gguf"));
    adapter(&from);
    let printed = report(&[&"convert", &from, &lora, &"--to", &"gguf-lora", &"--base", &model()]);
    assert_eq!((&printed["from"], &printed["to"]), (&json!("kron"), &json!("gguf-lora")));
    assert_eq!(printed["layers"][1]["lora_rank"], json!(4), "{printed}");
    let notes = printed["notes"].as_array().unwrap();
    assert!(notes.len() == 1 && notes[0].as_str().unwrap().ends_with("has one alpha: 1"), "{printed}");
    let inspected = report(&[&"inspect", &lora]);
    assert_eq!(inspected["format"], json!("gguf-lora"));
    let compared = report(&[&"diff", &from, &lora]);
    for layer in compared["layers"].as_array().unwrap() {
        assert!(layer["relative_distance"].as_f64().unwrap() < 1e-6, "{layer}");
    }
    // A LoRA's factors come back as they were.
    convert(&lora, &at("again"), "lora");
    convert(&from, &at("direct"), "lora");
    let file = |folder: &str| tensors(&at(folder).join("adapter_model.safetensors"));
    let only_q =
        |folder: &str| file(folder).into_iter().filter(|(name, _)| name.contains("q_proj")).collect();
    same(&only_q("again"), &only_q("direct"));
    // Half the values, by a configuration in place of the model.
    let config = at("config");
    report(&[&"convert", &model(), &config, &"--to", &"hf"]);
    let f16: [&dyn AsRef<std::ffi::OsStr>; 8] =
        [&"convert", &from, &half, &"--to", &"gguf-lora", &"--dtype", &"f16", &"--base"];
    report(&[&f16[..], &[&config]].concat());
    let first = std::fs::read(&half).unwrap();
    assert!(first.len() < std::fs::metadata(&lora).unwrap().len() as usize);
    report(&[&f16[..], &[&config.join("config.json"), &"--force"]].concat());
    assert_eq!(std::fs::read(&half).unwrap(), first);
    // The other side has another rank.
    let wide = report(&[
        &"convert",
        &from,
        &at("wide.gguf"),
        &"--to",
        &"gguf-lora",
        &"--side",
        &"in",
        &"--base",
        &config,
    ]);
    assert_eq!(wide["layers"][1]["lora_rank"], json!(8), "{wide}");
}

#[test]
fn what_llama_cpp_could_not_load_is_refused() {
    let (dir, model) = (dir(), model());
    let at = |name: &str| dir.path().join(name);
    let (from, out) = (at("adapter.safetensors"), at("lora.gguf"));
    adapter(&from);
    let refuse = |more: &[&dyn AsRef<std::ffi::OsStr>], code: i32, says: &str| {
        let all: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"convert", &from, &out, &"--to", &"gguf-lora"];
        refused(&[&all[..], more].concat(), code, &[says]);
    };
    refuse(&[], 2, "give it with --base");
    refuse(&[&"--base", &model, &"--dtype", &"bf16"], 2, "not bf16");
    refuse(&[&"--base", &model, &"--uniform"], 2, "--fit and --uniform");
    refuse(&[&"--base", &from], 1, "not a GGUF file");
    refuse(&[&"--base", &at("missing.gguf")], 1, "missing.gguf");
    refuse(&[&"--base", &model, &"--max-size", &"1K"], 1, "the limit is");
    std::fs::write(at("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    refuse(&[&"--base", &at("config.json")], 1, "model_type is \"gpt2\"");
    let other = at("other.safetensors");
    let c_fc = KronShape::lora(LayerDims { d_out: 32, d_in: 32 }, 1).unwrap();
    ours(&[("transformer.h.0.mlp.c_fc", c_fc, scaling(1.0, 1))], &other);
    refused(&[&"convert", &other, &out, &"--to", &"gguf-lora", &"--base", &model], 1, &["c_fc"]);
    refused(&[&"convert", &peft("lora"), &out, &"--to", &"gguf-lora", &"--base", &model], 1, &["layers.0"]);
    refused(&[&"convert", &from, &out, &"--to", &"lora", &"--dtype", &"f16"], 2, &["--to gguf-lora"]);
    refused(&[&"convert", &from, &out, &"--to", &"kron", &"--side", &"in"], 2, &["--to gguf-lora"]);
    assert_eq!(names(dir.path()), ["adapter.safetensors", "config.json", "other.safetensors"]);
    // What is there stays without --force.
    std::fs::write(&out, "mine").unwrap();
    refuse(&[&"--base", &model], 2, "exists");
    refuse(&[&"--base", &out, &"--force"], 2, "lora.gguf");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
}
