//! Adapters chosen by `--adapter-name` and `--only`, and folders of diffusers.

use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::json;

use crate::adapters::{dir, refused, report};
use crate::foreign_names::{Q, file, merged, model, notes, pair, peft, product, write};
use crate::golden::File;

const PREFIX: &str = "base_model.model.";

/// A PEFT folder with adapters `a` and `b` of one module, and one without names beside it.
fn named_and_plain(dir: &tempfile::TempDir) -> (PathBuf, PathBuf, File) {
    let module = format!("{PREFIX}{Q}");
    let plain = pair(&module, ["lora_A.weight", "lora_B.weight"]);
    let mut named = pair(&module, ["lora_A.a.weight", "lora_B.a.weight"]);
    named.extend(pair(&module, ["lora_A.b.weight", "lora_B.b.weight"]));
    let first = peft(dir, &named);
    let named = dir.path().join("named");
    std::fs::rename(first, &named).unwrap();
    (named, peft(dir, &plain), plain)
}

/// A name is for those adapters whose tensors have several; the others have one adapter each.
#[test]
fn a_name_chooses_among_several_adapters() {
    let dir = dir();
    let base = model(&dir, &[Q], &[6, 10]);
    let (named, plain, tensors) = named_and_plain(&dir);
    let [down, up] = tensors.values().collect::<Vec<_>>()[..] else { panic!("two factors") };
    let [out, both] = ["out.safetensors", "both.safetensors"].map(|name| dir.path().join(name));
    refused(&[&"combine", &named, &plain, &both], 1, &["holds several adapters, a, b", "--adapter-name"]);
    let json = report(&[&"combine", &named, &plain, &both, &"--adapter-name", &"a"]);
    let left = [format!("{PREFIX}{Q}.lora_A.b.weight"), format!("{PREFIX}{Q}.lora_B.b.weight")];
    assert_eq!(json["left_out"], json!(left));
    // s is 3 of each.
    merged(&base, &both, &[], &[(Q, 6.0, product(up, down))]);
    refused(&[&"merge", &base.0, &named, &plain, &out], 1, &["--adapter-name"]);
    let json = report(&[&"merge", &base.0, &named, &plain, &out, &"--adapter-name", &"b"]);
    assert_eq!(json["adapter_left_out"].as_array().map(Vec::len), Some(2), "{json}");
    let json = report(&[&"diff", &named, &plain, &"--adapter-name", &"a"]);
    assert_eq!((&json["left_out"], &json["total"]["distance"]), (&json!(left), &json!(0.0)));
    // One adapter alone has no other that the name could be for.
    refused(
        &[&"merge", &base.0, &plain, &out, &"--force", &"--adapter-name", &"a"],
        2,
        &["no names of adapters"],
    );
}

#[test]
fn a_start_of_names_is_taken_with_peft_s_prefix_too() {
    let dir = dir();
    let base = model(&dir, &[Q], &[6, 10]);
    let mut tensors = pair(&format!("{PREFIX}{Q}"), ["lora_A.weight", "lora_B.weight"]);
    let [down, up] =
        tensors.values().cloned().collect::<Vec<_>>()[..].to_vec().try_into().expect("two factors");
    tensors.extend(pair(&format!("{PREFIX}vision.q"), ["lora_A.weight", "lora_B.weight"]));
    let folder = peft(&dir, &tensors);
    let config = folder.join("adapter_config.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    text["rank_pattern"] = json!({ "vision.q": 2 });
    std::fs::write(&config, text.to_string()).unwrap();
    for only in ["model.", "base_model.model.model."] {
        let report = merged(&base, &folder, &["--only", only], &[(Q, 3.0, product(&up, &down))]);
        assert_eq!(report["adapter_left_out"].as_array().map(Vec::len), Some(2), "{report}");
        assert!(!notes(&report).contains("rank_pattern"), "{report}");
    }
}

/// diffusers saves a pipeline's LoRA in a folder without a configuration.
#[test]
fn a_folder_of_diffusers_is_its_file() {
    let dir = dir();
    let base = model(&dir, &["blocks.0.to_q"], &[6, 10]);
    let folder = dir.path().join("lora");
    std::fs::create_dir(&folder).unwrap();
    let tensors = pair("transformer.blocks.0.to_q", ["lora_A.weight", "lora_B.weight"]);
    let [down, up] = tensors.values().collect::<Vec<_>>()[..] else { panic!("two factors") };
    let weights = folder.join("pytorch_lora_weights.safetensors");
    write(&weights, &tensors, &[]);
    merged(&base, &folder, &[], &[("blocks.0.to_q", 1.0, product(up, down))]);
    assert_eq!(report(&[&"inspect", &folder])["format"], "diffusers-lora");
    refused(&[&"convert", &folder, &weights, &"--force"], 2, &["pytorch_lora_weights.safetensors"]);
    // No model that PEFT loads has the pipeline's part before a module's name.
    let out = dir.path().join("out");
    refused(
        &[&"convert", &folder, &out, &"--to", &"lora"],
        2,
        &["transformer.blocks.0.to_q", "--base MODEL"],
    );
    let json = report(&[&"convert", &folder, &out, &"--to", &"lora", &"--base", &base.0]);
    assert_eq!(json["layers"][0]["module"], "blocks.0.to_q");
}

/// Older files of diffusers have the attention's processor in their names.
#[test]
fn a_processor_s_lora_is_its_layer_s() {
    let dir = dir();
    let base = model(&dir, &["b.0.attn1.to_q", "b.0.attn1.to_out.0"], &[6, 10]);
    let path = dir.path().join("old.safetensors");
    let mut tensors = pair("unet.b.0.attn1.processor.to_q_lora", ["down.weight", "up.weight"]);
    let q = product(
        &tensors["unet.b.0.attn1.processor.to_q_lora.up.weight"],
        &tensors["unet.b.0.attn1.processor.to_q_lora.down.weight"],
    );
    tensors.extend(pair("unet.b.0.attn1.processor.to_out_lora", ["down.weight", "up.weight"]));
    write(&path, &tensors, &[]);
    merged(&base, &path, &[], &[("b.0.attn1.to_q", 1.0, q.clone()), ("b.0.attn1.to_out.0", 1.0, q)]);
}

#[test]
fn a_broken_index_is_what_inspect_reports() {
    let dir = dir();
    let base = dir.path().join("model");
    std::fs::create_dir(&base).unwrap();
    let tensors = file(&[("q.weight".into(), Dtype::F32, &[6, 10])]);
    write(&base.join("model.safetensors"), &tensors, &[]);
    assert_eq!(report(&[&"inspect", &base])["holds"], "model");
    std::fs::write(base.join("model.safetensors.index.json"), "{}").unwrap();
    refused(&[&"inspect", &base], 1, &["model.safetensors.index.json is not an index of shards"]);
}

/// Python writes NaN where a run had none.
#[test]
fn a_configuration_may_have_nan_where_it_describes() {
    let dir = dir();
    let folder = peft(&dir, &pair(&format!("{PREFIX}{Q}"), ["lora_A.weight", "lora_B.weight"]));
    let path = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', r#"{"eva_config": {"rho": NaN, "tau": -Infinity},"#, 1))
        .unwrap();
    assert_eq!(report(&[&"inspect", &folder])["format"], "peft-lora");
    std::fs::write(&path, text.replace("\"lora_alpha\":6", "\"lora_alpha\":NaN")).unwrap();
    refused(&[&"inspect", &folder, &"--html", &dir.path().join("page.html")], 1, &["it has no lora_alpha"]);
}
