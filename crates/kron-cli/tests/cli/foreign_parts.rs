//! One file for several models, and names that only the model tells: underscores of any prefix, roots, and the
//! towers of models with vision.

use std::ffi::OsStr;

use safetensors::Dtype;
use serde_json::json;

use crate::adapters::{dir, refused, report};
use crate::foreign_names::{Q, file, merged, model, notes, pair, peft, product, write};
use crate::golden::{File, Tensor};
use crate::models::tensor;

/// No model has a module of such a name, whatever its prefix.
#[test]
fn names_with_underscores_need_the_model() {
    let dir = dir();
    let (base, _) = model(&dir, &["blocks.0.attn.to_q"], &[6, 10]);
    let [path, out] = ["adapter.safetensors", "out"].map(|name| dir.path().join(name));
    for (prefix, says) in [
        ("lora_unet_", ""),
        ("lora_transformer_", "lora_transformer_ was taken off"),
        ("lora_te3_", ""),
        ("lora_prior_unet_", "lora_prior_unet_ was taken off"),
        ("mine_", "mine_ was taken off"),
    ] {
        let module = format!("{prefix}blocks_0_attn_to_q");
        let lokr = file(&[
            (format!("{module}.lokr_w1"), Dtype::F32, &[3, 2]),
            (format!("{module}.lokr_w2"), Dtype::F32, &[2, 5]),
        ]);
        for tensors in [lokr, pair(&module, ["lora_down.weight", "lora_up.weight"])] {
            write(&path, &tensors, &[]);
            let is_known = prefix.starts_with("lora_");
            for to in ["lora", "kron"] {
                if to == "lora" || !is_known {
                    let call: [&dyn AsRef<OsStr>; 5] = [&"convert", &path, &out, &"--to", &to];
                    refused(&call, 2, &[&module, "--base MODEL"]);
                }
                let call: [&dyn AsRef<OsStr>; 7] = [&"convert", &path, &out, &"--to", &to, &"--base", &base];
                let report = report(&call);
                assert_eq!(report["layers"][0]["module"], "blocks.0.attn.to_q");
                assert!(notes(&report).contains(says), "{report}");
                match out.is_dir() {
                    true => std::fs::remove_dir_all(&out).unwrap(),
                    false => std::fs::remove_file(&out).unwrap(),
                }
            }
        }
    }
}

/// SDXL has two text encoders with modules of one name, and a denoiser in the same file.
#[test]
fn of_a_file_for_several_models_one_part_is_chosen() {
    let dir = dir();
    let base = model(&dir, &["text_model.layers.0.q"], &[6, 10]);
    let [path, out] = ["sdxl.safetensors", "out"].map(|name| dir.path().join(name));
    let ends = ["lora_down.weight", "lora_up.weight"];
    let part = |prefix: &str, module: &str| pair(&format!("{prefix}{module}"), ends);
    let [te1, te2] = ["lora_te1_", "lora_te2_"].map(|prefix| part(prefix, "text_model_layers_0_q"));
    let both: File = [te1.clone(), te2].into_iter().flatten().collect();
    write(&path, &both, &[]);
    let call: [&dyn AsRef<OsStr>; 4] = [&"merge", &base.0, &path, &out];
    refused(&call, 1, &["parts lora_te1_ and lora_te2_", "--only PREFIX"]);
    let factor = |end: &str| &te1[&format!("lora_te1_text_model_layers_0_q.{end}")];
    let want = [("text_model.layers.0.q", 1.0, product(factor(ends[1]), factor(ends[0])))];
    let report = merged(&base, &path, &["--only", "lora_te1_"], &want);
    assert_eq!(
        report["adapter_left_out"],
        json!(ends.map(|end| format!("lora_te2_text_model_layers_0_q.{end}")))
    );
    refused(&[&"inspect", &path, &"--only", &"lora_te3_"], 2, &["starts with lora_te3_"]);
    // The part that has a place is told, and the other is not merged silently.
    let with_unet: File = [te1.clone(), part("lora_unet_", "blocks_0_q")].into_iter().flatten().collect();
    write(&path, &with_unet, &[]);
    refused(&call, 1, &["all modules of lora_te1_ (1) and none of lora_unet_ (1)", "--only PREFIX"]);
    merged(&base, &path, &["--only", "lora_te1_"], &want);
    // A part that ΔW cannot express does not matter where it is not read.
    let mut with_conv = te1.clone();
    with_conv.insert("lora_unet_conv.lora_mid.weight".into(), tensor(Dtype::F32, &[2, 2, 3, 3], 1));
    write(&path, &with_conv, &[]);
    refused(&call, 1, &["lora_mid.weight is refused", "Tucker"]);
    merged(&base, &path, &["--only", "lora_te1_"], &want);
    // Our own file has whole names.
    let kron = dir.path().join("kron.safetensors");
    write(&path, &with_unet, &[]);
    crate::adapters::report(&[&"convert", &path, &kron]);
    let report = merged(&base, &kron, &["--only", "lora_te1_"], &want);
    assert_eq!(report["adapter_left_out"], json!(["lora_unet_blocks_0_q"]));
}

/// A checkpoint lacks or has a root, as `convert --base` and `diff --base` know too.
#[test]
fn one_resolution_serves_merge_convert_and_diff() {
    let dir = dir();
    let base = model(&dir, &["decoder.layers.0.k_proj", "decoder.norm"], &[6, 10]);
    let [path, out] = ["sub.safetensors", "out"].map(|name| dir.path().join(name));
    let tensors = pair("lycoris_layers_0_k_proj", ["lora_down.weight", "lora_up.weight"]);
    write(&path, &tensors, &[]);
    let factors: Vec<&Tensor> = tensors.values().collect();
    merged(&base, &path, &[], &[("decoder.layers.0.k_proj", 1.0, product(factors[1], factors[0]))]);
    let converted = report(&[&"convert", &path, &out, &"--base", &base.0]);
    assert_eq!(converted["layers"][0]["module"], "decoder.layers.0.k_proj");
    let compared = report(&[&"diff", &path, &out, &"--base", &base.0]);
    assert!(compared["total"]["relative_distance"].as_f64().unwrap() < 1e-7);
    assert!(notes(&compared).contains("decoder. was put before the names of lycoris_"), "{compared}");
}

/// The text layers of Qwen3.5 and of Gemma 3 on disk, and an adapter that was trained for the text alone.
#[test]
fn a_text_adapter_finds_the_text_tower() {
    let dir = dir();
    let plain = pair(&format!("base_model.model.{Q}"), ["lora_A.weight", "lora_B.weight"]);
    let [down, up] = plain.values().collect::<Vec<_>>()[..] else { panic!("two factors") };
    let adapter = peft(&dir, &plain);
    for (tower, vision, says) in [
        ("model.language_model.", "model.visual.blocks.0.attn.qkv", "model. became model.language_model."),
        (
            "language_model.model.",
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
            "language_model. was put",
        ),
    ] {
        let module = Q.replacen("model.", tower, 1);
        let base = model(&dir, &[&module, vision], &[6, 10]);
        let report = merged(&base, &adapter, &[], &[(&module, 3.0, product(up, down))]);
        assert!(notes(&report).contains(says), "{report}");
    }
    let base = model(&dir, &["model.decoder.layers.0.mlp", "model.norm"], &[6, 10]);
    let call: [&dyn AsRef<OsStr>; 4] = [&"merge", &base.0, &adapter, &dir.path().join("out")];
    refused(&call, 1, &[Q, "matches no tensor; near are"]);
}
