//! Biases and rows of an embedding that PEFT trained beside the factors, in a merge and through other formats.

use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{config, dir, report};
use crate::golden::File;
use crate::merge_extras::{extras, model, peft};
use crate::models::{assert_merge_fails, load, merge, tensor};

/// Trained tokens are rows that the model has, one for each index, of an adapter that has no weight.
#[test]
fn tokens_that_are_not_the_model_s_are_refused() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    let out = dir.path().join("out");
    let with = |tokens: Value| move |config: &mut Value| config["trainable_token_indices"] = tokens.clone();
    for (tokens, says) in [
        (
            json!({ "embed_tokens": [1, 11, 4] }),
            "model.embed_tokens.weight has 11 rows, but one of row 11 was trained",
        ),
        (json!([1, 4]), "has 3 rows, but trainable_token_indices has 2 tokens for it"),
        (json!({ "wte": [1, 10, 4] }), "has 3 rows, but trainable_token_indices has 0 tokens for it"),
        (json!([1, 1, 4]), "a list of different tokens"),
        (json!([1, -1, 4]), "a list of different tokens"),
        (json!("all"), "a list of different tokens"),
    ] {
        let folder = peft(dir.path(), "tokens", |_| (), with(tokens));
        assert_merge_fails(merge(&base, &folder, &out, &[]), 1, &[says]);
    }
    let narrow = |file: &mut File| {
        let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
        file.insert(name.into(), tensor(Dtype::F32, &[3, 5], 1));
    };
    let folder = peft(dir.path(), "tokens", narrow, |_| ());
    assert_merge_fails(merge(&base, &folder, &out, &[]), 1, &["has rows of 12, but those trained have 5"]);
    let weighted = PathBuf::from(format!("{}:0.5", extras().join("tokens").display()));
    assert_merge_fails(merge(&base, &weighted, &out, &[]), 1, &["has the weight 0.5, but trained tensors"]);
    let list = peft(dir.path(), "tokens", |_| (), with(json!([1, 10, 4])));
    assert_eq!(report(&[&"merge", &base, &list, &out])["replaced"], 1);
    let diagnosis = report(&[&"inspect", &list]);
    assert_eq!(diagnosis["trained_tensors"][0]["name"], "model.embed_tokens.weight", "{diagnosis}");
}

/// Biases and trained tokens go through our file and back into a PEFT folder that merges to the same bytes.
#[test]
fn biases_and_tokens_are_carried() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    for (name, lora_alone) in [("biases", "model.q_proj.bias"), ("tokens", "model.embed_tokens.weight")] {
        let [ours, lora, lokr] =
            ["ours.safetensors", "lora", "lokr"].map(|end| dir.path().join(format!("{name}-{end}")));
        report(&[&"convert", &extras().join(name), &ours]);
        report(&[&"convert", &ours, &lora, &"--to", &"lora"]);
        let merged = [&extras().join(name), &ours, &lora].map(|adapter| {
            let out = dir.path().join("merged");
            report(&[&"merge", &base, adapter, &out, &"--force"]);
            std::fs::read(out.join("model.safetensors")).unwrap()
        });
        assert!(merged[0] == merged[1] && merged[1] == merged[2], "{name}");
        let theirs = load(&extras().join(name).join("adapter_model.safetensors"));
        let names = |file: File| file.into_keys().collect::<Vec<_>>();
        assert_eq!(names(load(&lora.join("adapter_model.safetensors"))), names(theirs));
        assert_eq!(config(&lora)["modules_to_save"], Value::Null);
        // PEFT's LoKr has no such fields.
        let json = report(&[
            &"convert",
            &ours,
            &lokr,
            &"--to",
            &"peft-lokr",
            &"--fit",
            &"--a-out",
            &"2",
            &"--a-in",
            &"2",
            &"--rank",
            &"1",
            &"--max-error",
            &"2",
            &"--factors-only",
        ]);
        assert!(json["left_out"].to_string().contains(lora_alone), "{json}");
    }
}
