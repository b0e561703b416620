//! `kron merge` compared with PEFT's merge, and with ΔW by its definition.

use std::collections::BTreeMap;
use std::path::Path;

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::golden::{File, Tensor, golden, serialize};
use crate::models::{adapter, delta, load, merge, names, sharded, tensor, values};

#[test]
fn agrees_with_merge_and_unload() {
    let model = golden().join("model_llama");
    let base = model.join("base.safetensors");
    let outputs = load(&model.join("outputs.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    for (name, folded) in [("lokr", 10), ("lokr_mix", 3), ("lora", 6), ("lora_rs", 2)] {
        let out = dir.path().join(name);
        let (code, text, err) = merge(&base, &model.join(name), &out, &["--json"]);
        assert_eq!((code, err.as_str()), (0, ""));
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["layers"], folded);
        let (before, after) = (load(&base), load(&out));
        assert!(before.keys().eq(after.keys()));
        let mut compared = 0;
        for (tensor, merged) in &after {
            let Some(peft) = outputs.get(&format!("{name}.merged.{tensor}")) else {
                assert_eq!(merged.bytes, before[tensor].bytes, "{name}: {tensor} has no adapter");
                continue;
            };
            compared += 1;
            let (ours, theirs, original) = (values(merged), values(peft), values(&before[tensor]));
            let largest = theirs.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            // Two roundings on either side, of ΔW and of the sum.
            let bound = 4.0 * 2f64.powi(-24) * largest;
            let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart(&ours, &theirs) <= bound, "{name}: {tensor}");
            assert!(apart(&ours, &original) > 1e3 * bound, "{name}: {tensor} is as it was");
        }
        assert_eq!(compared, folded);
    }
}

/// Asserts that `after` is W + ΔW: the sum is rounded once to the dtype, its terms to float32.
fn assert_folded(before: &Tensor, after: &Tensor, delta: impl IntoIterator<Item = (f64, f64)>) {
    let u = match after.dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    };
    let mut moved = 0.0f64;
    for ((w, got), (delta, terms)) in values(before).into_iter().zip(values(after)).zip(delta) {
        let exact = w + delta;
        let bound = u * exact.abs() + 8.0 * 2f64.powi(-24) * (w.abs() + terms) + 2f64.powi(-25);
        assert!((got - exact).abs() <= bound, "{got} is not {exact} in {}", after.dtype);
        moved = moved.max((got - w).abs());
    }
    assert!(moved > 0.05, "nothing was added");
}

#[test]
fn every_dtype_over_shards() {
    let dir = tempfile::tempdir().unwrap();
    let shards = [
        File::from([
            ("model.q_proj.weight".into(), tensor(Dtype::F32, &[48, 30], 1)),
            ("model.norm.weight".into(), tensor(Dtype::BF16, &[48], 2)),
        ]),
        File::from([
            ("model.k_proj.weight".into(), tensor(Dtype::F16, &[12, 30], 3)),
            ("model.v_proj.weight".into(), tensor(Dtype::BF16, &[35, 22], 4)),
            ("model.empty.weight".into(), tensor(Dtype::F32, &[0, 4], 5)),
        ]),
    ];
    let base = sharded(dir.path(), &shards, json!({ "model_type": "of-my-own" }));
    for name in ["pytorch_model.bin", "old.safetensors", "adapter_config.json", "adapter_model.safetensors"] {
        std::fs::write(base.join(name), "other weights").unwrap();
    }
    std::fs::create_dir(base.join("onnx")).unwrap();
    let (file, ours) = adapter(
        dir.path(),
        &[
            (
                "model.q_proj",
                KronShape::kron(LayerDims { d_out: 48, d_in: 30 }, Split { a_out: 4, a_in: 3 }, 5).unwrap(),
            ),
            ("model.k_proj", KronShape::lora(LayerDims { d_out: 12, d_in: 30 }, 3).unwrap()),
            (
                "model.v_proj",
                KronShape::krona(LayerDims { d_out: 35, d_in: 22 }, Split { a_out: 7, a_in: 2 }).unwrap(),
            ),
        ],
    );
    let out = dir.path().join("deep/out");
    let (code, text, err) = merge(&base, &file, &out, &["--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["layers"], &report["shards"], &report["kept"]), (&json!(3), &json!(2), &json!(0)));
    assert_eq!(report["copied"], json!(["config.json", "tokenizer.json"]));
    let left =
        ["adapter_config.json", "adapter_model.safetensors", "old.safetensors", "onnx", "pytorch_model.bin"];
    assert_eq!(report["left_out"], json!(left));
    let others = ["config.json", "tokenizer.json", "model.safetensors.index.json"];
    for name in others {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), std::fs::read(base.join(name)).unwrap(), "{name}");
    }
    assert_eq!(names(&out).len(), shards.len() + others.len(), "{:?}", names(&out));

    let written: Vec<String> =
        names(&out).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    for (name, before) in written.iter().zip(&shards) {
        let after = load(&out.join(name));
        for (name, before) in before {
            let layer = name.strip_suffix(".weight").and_then(|module| ours.layer(module));
            match layer {
                Some(layer) => assert_folded(before, &after[name], delta(layer)),
                None => assert_eq!(after[name].bytes, before.bytes, "{name}"),
            }
        }
    }
}

/// A model saved without its head lacks the first component of the names.
#[test]
fn names_apart_by_one_leading_component_are_found() {
    let shape = KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap();
    for (theirs, ours, says) in [
        ("h.{}.attn", "transformer.h.{}.attn", "transformer. was taken off the adapter's names"),
        ("bert.layer.{}.query", "layer.{}.query", "bert. was put before the adapter's names"),
        ("model.{}.q", "{}.q", "model. was put before the adapter's names"),
    ] {
        let named = |name: &str| ["0", "1"].map(|i| name.replace("{}", i));
        let dir = tempfile::tempdir().unwrap();
        let weight = |seed| tensor(Dtype::F32, &[6, 10], seed);
        let names = named(theirs);
        let file = File::from([
            (format!("{}.weight", names[0]), weight(1)),
            (format!("{}.weight", names[1]), weight(2)),
            ("head.weight".into(), weight(3)),
        ]);
        let base = dir.path().join("base.safetensors");
        std::fs::write(&base, serialize(&file)).unwrap();
        let modules = named(ours);
        let (adapter, ours) = adapter(dir.path(), &[(&modules[0], shape), (&modules[1], shape)]);
        let out = dir.path().join("out.safetensors");
        let (code, text, err) = merge(&base, &adapter, &out, &["--json"]);
        assert_eq!((code, err.as_str()), (0, ""));
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&report["layers"], report["notes"].as_array().map(Vec::len)), (&json!(2), Some(1)));
        assert!(report["notes"][0].as_str().unwrap().contains(says), "{text}");
        let after = load(&out);
        for (name, layer) in names.iter().zip(ours.layers()) {
            let weight = format!("{name}.weight");
            assert_folded(&file[&weight], &after[&weight], delta(layer));
        }
        assert_eq!(after["head.weight"].bytes, file["head.weight"].bytes);
    }
}

#[test]
fn single_file_in_a_folder_keeps_its_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    let file = File::from([("q.weight".into(), tensor(Dtype::F32, &[6, 10], 1))]);
    let views = file.iter().map(|(name, t)| {
        (name.clone(), safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap())
    });
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
    std::fs::write(base.join("model.safetensors"), &bytes).unwrap();
    let (adapter, ours) = adapter(
        dir.path(),
        &[("q", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap())],
    );
    let out = dir.path().join("out");
    assert_eq!(merge(&base, &adapter, &out, &[]).0, 0);
    let merged = std::fs::read(out.join("model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    assert_eq!(merged[..header], bytes[..header]);
    let after = &load(&out.join("model.safetensors"))["q.weight"];
    assert_folded(&file["q.weight"], after, delta(&ours.layers()[0]));

    // What is there is overwritten only when told, and then in one step.
    assert_eq!(merge(&base, &adapter, &out, &[]).0, 2);
    assert_eq!(merge(&base, &adapter, &out, &["--force"]).0, 0);
    assert_eq!(std::fs::read(out.join("model.safetensors")).unwrap(), merged);
}

#[test]
fn conv1d_of_gpt2_is_folded_transposed() {
    let dir = tempfile::tempdir().unwrap();
    // Square, so that the shape alone could not tell.
    let stored = [("h.0.attn.c_proj", [12, 12]), ("h.0.mlp.c_fc", [12, 20]), ("h.0.mlp.c_proj", [20, 12])];
    let tensors = stored.map(|(name, shape)| (format!("{name}.weight"), tensor(Dtype::F32, &shape, 9)));
    let file = File::from(tensors);
    let base = sharded(dir.path(), std::slice::from_ref(&file), json!({ "model_type": "gpt2" }));
    let (path, ours) = adapter(
        dir.path(),
        &[
            (
                "h.0.attn.c_proj",
                KronShape::kron(LayerDims { d_out: 12, d_in: 12 }, Split { a_out: 4, a_in: 3 }, 2).unwrap(),
            ),
            ("h.0.mlp.c_fc", KronShape::lora(LayerDims { d_out: 20, d_in: 12 }, 3).unwrap()),
            (
                "h.0.mlp.c_proj",
                KronShape::krona(LayerDims { d_out: 12, d_in: 20 }, Split { a_out: 3, a_in: 5 }).unwrap(),
            ),
        ],
    );
    let out = dir.path().join("out");
    let (code, _, err) = merge(&base, &path, &out, &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let after = load(&out.join("model-00001-of-00001.safetensors"));
    for layer in ours.layers() {
        let name = format!("{}.weight", layer.module());
        let (rows, columns) = (layer.shape().d_out(), layer.shape().d_in());
        let delta = delta(layer);
        let transposed = (0..rows * columns).map(|at| delta[at % rows * columns + at / rows]);
        assert_folded(&file[&name], &after[&name], transposed);
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::from([("q.weight".into(), tensor(Dtype::BF16, &[600, 900], 1))]);
    let base = dir.path().join("base.safetensors");
    std::fs::write(&base, serialize(&file)).unwrap();
    let (adapter, _) = adapter(
        dir.path(),
        &[(
            "q",
            KronShape::kron(LayerDims { d_out: 600, d_in: 900 }, Split { a_out: 4, a_in: 3 }, 16).unwrap(),
        )],
    );
    let merged: BTreeMap<&str, Vec<u8>> = ["1", "2", "5"]
        .map(|threads| {
            let out = dir.path().join(threads);
            let args = [Path::new("merge"), &base, &adapter, &out];
            crate::golden::kron().env("RAYON_NUM_THREADS", threads).args(args).assert().success();
            (threads, std::fs::read(&out).unwrap())
        })
        .into();
    assert_eq!(merged["1"], merged["2"]);
    assert_eq!(merged["1"], merged["5"]);
}

#[test]
fn waiting_for_the_disk_changes_no_byte() {
    let model = golden().join("model_llama");
    let dir = tempfile::tempdir().unwrap();
    let [lazy, sync] = [&[][..], &["--sync"]].map(|flags| {
        let out = dir.path().join(format!("{}", flags.len()));
        assert_eq!(merge(&model.join("base.safetensors"), &model.join("lokr"), &out, flags).0, 0);
        std::fs::read(&out).unwrap()
    });
    assert!(sync == lazy && !sync.is_empty());
}

#[test]
fn help_has_an_example_and_says_that_the_original_is_kept() {
    let run = crate::golden::kron().args(["merge", "--help"]).env("COLUMNS", "100").assert().success();
    let text = String::from_utf8_lossy(&run.get_output().stdout).into_owned();
    assert!(text.contains("Example") && text.contains("  kron merge"), "{text}");
    assert!(text.contains("A merge cannot be undone"), "{text}");
    insta::assert_snapshot!("help_merge", text);
}
