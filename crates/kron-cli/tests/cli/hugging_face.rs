//! `kron convert --to hf`: a GGUF model as a Hugging Face folder.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{dir, refused, report};
use crate::golden::golden;
use crate::models::{load, names, run};

#[test]
fn the_folder_is_whole_and_its_weights_have_the_type() {
    let (dir, model) = (dir(), golden().join("tiny_llama.gguf"));
    for (name, flags, dtype) in [
        ("exact", &[][..], Dtype::F32),
        ("f16", &["--dtype", "f16"], Dtype::F16),
        ("bf16", &["--dtype", "bf16"], Dtype::BF16),
    ] {
        let out = dir.path().join(name);
        let flags: Vec<&dyn AsRef<std::ffi::OsStr>> = flags.iter().map(|flag| flag as _).collect();
        let printed = report(
            &[&[&"convert" as &dyn AsRef<std::ffi::OsStr>, &model, &out, &"--to", &"hf"], &flags[..]]
                .concat(),
        );
        assert_eq!(printed["tensors"], json!(11));
        let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names(&out), files);
        let weights = load(&out.join("model.safetensors"));
        assert!(weights.len() == 11 && weights.values().all(|tensor| tensor.dtype == dtype));
        let bytes: usize = weights.values().map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(printed["bytes"], json!(bytes));
        let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["num_hidden_layers"], json!(1));
    }
    assert_eq!(names(dir.path()), ["bf16", "exact", "f16"]);
}

#[test]
fn what_is_there_or_is_not_asked_for_is_refused() {
    let (dir, model) = (dir(), golden().join("tiny_llama.gguf"));
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "").unwrap();
    let new = dir.path().join("new");
    refused(&[&"convert", &model, &out, &"--to", &"hf"], 2, &["exists"]);
    refused(&[&"convert", &model, &new, &"--to", &"hf", &"--force"], 2, &["--dtype alone"]);
    refused(&[&"convert", &model, &new, &"--to", &"hf", &"--base", &model], 2, &["--dtype alone"]);
    refused(&[&"convert", &model, &new, &"--dtype", &"f16"], 2, &["--to hf"]);
    refused(&[&"convert", &Path::new("Cargo.toml"), &new, &"--to", &"hf"], 1, &["not a GGUF file"]);
    assert_eq!(names(dir.path()), ["out"]);
    assert_eq!(names(&out), ["mine"]);
    // A model as an adapter is not an adapter.
    let (code, _, err) = run(["convert".as_ref(), model.as_os_str(), new.as_os_str()]);
    assert_eq!(code, 1, "{err}");
}
