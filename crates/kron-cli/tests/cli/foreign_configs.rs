//! Configurations of PEFT as people hold them: fields that only describe never refuse, patterns count as in PEFT, and
//! a byte order mark is named.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapters::{dir, refused, report};
use crate::foreign_names::{Q, file, notes, pair, peft};
use crate::golden::golden;

/// A folder whose LoRA on q_proj has these fields too.
fn with(dir: &TempDir, fields: &Value) -> PathBuf {
    let folder = peft(dir, &pair(&format!("base_model.model.{Q}"), ["lora_A.weight", "lora_B.weight"]));
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

#[test]
fn fields_that_describe_never_refuse() {
    let dir = dir();
    let long = format!("^(?:{})$", vec![r"model\.layers\.0\.self_attn\.q_proj"; 40].join("|"));
    for (fields, says) in [
        (json!({ "target_modules": long }), "target_modules is not kept"),
        (json!({ "target_modules": "(?x)\n model\\.layers" }), "target_modules is not kept"),
        (json!({ "target_modules": [""] }), "target_modules is not kept"),
        (json!({ "target_modules": null }), ""),
        (json!({ "target_modules": "all-linear" }), ""),
        (json!({ "init_lora_weights": "mica" }), ""),
        (json!({ "megatron_config": { "tensor_model_parallel_size": 1 } }), ""),
        (json!({ "velora_config": { "rank": 8 } }), ""),
        (json!({ "bias": "lora_only" }), "bias is \"lora_only\", but the file has no bias"),
        (json!({ "bias": "none" }), ""),
    ] {
        let report = report(&[&"inspect", &with(&dir, &fields)]);
        assert_eq!(
            (&report["layers"][0]["scale"], &report["layers"][0]["rank"]),
            (&json!(3.0), &json!(2)),
            "{fields}"
        );
        assert_eq!(report["notes"].as_array().unwrap().is_empty(), says.is_empty(), "{report}");
        assert!(notes(&report).contains(says), "{report}");
    }
}

/// The scales are those of PEFT's `get_pattern_key`, which takes the first pattern from a dot on.
#[test]
fn patterns_count_as_in_peft() {
    let dir = dir();
    let layer = |i: usize| format!("model.layers.{i}.self_attn.q_proj");
    let tensors = [(0, 4), (1, 2), (11, 4)].into_iter().flat_map(|(i, rank)| {
        let name = format!("base_model.model.{}", layer(i));
        let [down, up]: [&'static [usize]; 2] =
            if rank == 4 { [&[4, 10], &[6, 4]] } else { [&[2, 10], &[6, 2]] };
        file(&[
            (format!("{name}.lora_A.weight"), Dtype::F32, down),
            (format!("{name}.lora_B.weight"), Dtype::F32, up),
        ])
    });
    let folder = peft(&dir, &tensors.collect());
    let ranks = r"layers\.(?!1\.)\d+\.self_attn\.(q|k)_proj";
    for (alphas, scales, says) in [
        (json!({}), [1.5, 3.0, 1.5], ""),
        (json!({ "(?<!1)1.self_attn.q_proj": 8, "q_proj": 2 }), [0.5, 4.0, 0.5], ""),
        (
            json!({ "0.self_attn.q_proj": 8, "^q_proj": 100 }),
            [2.0, 3.0, 1.5],
            "alpha_pattern has patterns that decide for no layer: \"^q_proj\"",
        ),
    ] {
        let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "rank_pattern": { ranks: 4 }, "alpha_pattern": alphas });
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let report = report(&[&"inspect", &folder]);
        for (i, scale) in [0, 1, 11].into_iter().zip(scales) {
            let of = report["layers"]
                .as_array()
                .unwrap()
                .iter()
                .find(|l| l["module"] == layer(i).as_str())
                .unwrap();
            assert_eq!(of["scale"], json!(scale), "{alphas}: {of}");
        }
        assert_eq!(report["notes"].as_array().unwrap().is_empty(), says.is_empty(), "{report}");
        assert!(notes(&report).contains(says), "{report}");
    }
}

#[test]
fn a_byte_order_mark_is_named() {
    let dir = dir();
    let marked = |path: &Path| {
        let text = std::fs::read(path).unwrap();
        std::fs::write(path, [&b"\xef\xbb\xbf"[..], &text].concat()).unwrap();
    };
    let folder = with(&dir, &json!({}));
    marked(&folder.join("adapter_config.json"));
    let says = "begins with a byte order mark, which JSON does not have";
    refused(&[&"convert", &folder, &dir.path().join("out")], 1, &["adapter_config.json", says]);
    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(folder.join("adapter_config.json"), wide).unwrap();
    refused(&[&"convert", &folder, &dir.path().join("out")], 1, &["adapter_config.json", "UTF-16"]);
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"model_type": "llama"}"#).unwrap();
    marked(&config);
    refused(&[&"plan", &"--config", &config], 1, &["config.json", says]);
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::write(base.join("model.safetensors.index.json"), "{}").unwrap();
    marked(&base.join("model.safetensors.index.json"));
    let lora = golden().join("model_llama/lora");
    refused(&[&"merge", &base, &lora, &dir.path().join("merged")], 1, &["index.json", says]);
    let header = b"\xef\xbb\xbf{}  ";
    std::fs::write(base.join("a.safetensors"), [&(header.len() as u64).to_le_bytes()[..], header].concat())
        .unwrap();
    refused(
        &[&"merge", &base.join("a.safetensors"), &lora, &dir.path().join("m")],
        1,
        &["a.safetensors", says],
    );
}
