//! Files written by LyCORIS, and LyCORIS's outputs for them (`scripts/golden_lycoris.py`).

use std::path::PathBuf;

use kron_adapter::Adapter;
use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;

use crate::adapters::{convert, dir, ours, refused, report, run, scaling, tensors, values};
use crate::golden::{File, golden, serialize};
use crate::models::tensor;

const CASES: [&str; 4] = ["w2_product", "both_products", "both_full", "factor_4"];

fn file(name: &str) -> PathBuf {
    golden().join(format!("lycoris/{name}.safetensors"))
}

/// Returns the model's output in float64; relu stands between its two layers.
fn output(weights: &File, x: &[f64]) -> Vec<f64> {
    let layer = |x: &[f64], name: &str| -> Vec<f64> {
        let (w, b) = (&weights[&format!("{name}.weight")], values(&weights[&format!("{name}.bias")]));
        let (w, columns) = (values(w), w.shape[1]);
        let dot = |x: &[f64], row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let rows = |x| w.chunks(columns).zip(&b).map(move |(row, b)| dot(x, row) + b);
        x.chunks(columns).flat_map(rows).collect()
    };
    let middle: Vec<f64> = layer(x, "up").into_iter().map(|v| v.max(0.0)).collect();
    layer(&middle, "block.down")
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn a_merged_model_computes_what_lycoris_computed() {
    let (dir, golden) = (dir(), tensors(&file("outputs")));
    let x = values(&golden["x"]);
    let without = output(&tensors(&file("base")), &x);
    assert!(apart(&without, &values(&golden["y"])) < 1e-6);
    for case in CASES {
        let out = dir.path().join(case);
        report(&[&"merge", &file("base"), &file(case), &out]);
        let want = values(&golden[&format!("{case}.y")]);
        assert!(apart(&output(&tensors(&out), &x), &want) < 2e-6, "{case}");
        assert!(apart(&without, &want) > 1e-2, "{case}: the adapter does nothing");
    }
}

#[test]
fn the_model_gives_the_modules_their_names() {
    let dir = dir();
    for case in CASES {
        let [kron, lokr, back] = ["kron", "lokr", "back"].map(|end| dir.path().join(format!("{case}-{end}")));
        report(&[&"convert", &file(case), &kron, &"--base", &file("base")]);
        let adapter = Adapter::read(&kron).unwrap();
        let modules: Vec<_> = adapter.layers().iter().map(|layer| layer.module()).collect();
        assert_eq!(modules, ["block.down", "up"], "{case}");

        // PEFT has no module of LyCORIS's name.
        let call: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"convert", &file(case), &lokr, &"--to", &"peft-lokr"];
        refused(&call, 2, &["lycoris_block_down is LyCORIS's name", "--base"]);
        report(&[&"convert", &file(case), &lokr, &"--to", &"peft-lokr", &"--base", &file("base")]);
        let names = tensors(&lokr.join("adapter_model.safetensors"));
        assert!(names.contains_key("base_model.model.block.down.lokr_w1"), "{case}");

        // What LyCORIS stored comes back; a product is stored as the matrix that it is.
        convert(&kron, &back, "lycoris");
        let (mut before, mut after) = (tensors(&file(case)), tensors(&back));
        if case == "both_full" {
            // There alpha means nothing.
            for file in [&mut before, &mut after] {
                file.retain(|name, _| !name.ends_with(".alpha"));
            }
        }
        if case != "both_products" {
            assert!(before.keys().eq(after.keys()), "{case}");
            for (name, tensor) in &before {
                assert_eq!(
                    (&after[name].shape, &after[name].bytes),
                    (&tensor.shape, &tensor.bytes),
                    "{case} {name}"
                );
            }
        }
        let compared = report(&[&"diff", &file(case), &back]);
        assert!(compared["total"]["relative_distance"].as_f64().unwrap() < 1e-7, "{case}");
    }
}

/// Kohya's trainers put prefixes before the module's own name.
#[test]
fn kohya_s_names_stay_until_a_model_gives_its_own() {
    let dir = dir();
    let [kron, file, back, lokr, out] =
        ["kron", "file", "back", "lokr", "out"].map(|name| dir.path().join(name));
    let names = ["lora_unet_down_0_q", "lora_te_mlp_fc1", "lora_te1_mlp_fc2", "lora_te2_final_proj"];
    let shape = KronShape::kron(LayerDims { d_out: 48, d_in: 48 }, Split { a_out: 6, a_in: 6 }, 2).unwrap();
    let layers: Vec<_> = names.map(|name| (name, shape, scaling(3.0, 2))).into();
    let adapter = ours(&layers, &kron);
    convert(&kron, &file, "lycoris");
    let stored = tensors(&file);
    for name in names {
        assert!(stored.contains_key(&format!("{name}.lokr_w1")), "{name} in {:?}", stored.keys());
    }
    convert(&file, &back, "kron");
    for layer in adapter.layers() {
        let same = Adapter::read(&back).unwrap();
        assert_eq!(same.layer(layer.module()).expect("the same name").theta(), layer.theta());
    }
    let again = dir.path().join("again");
    convert(&back, &again, "lycoris");
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&file).unwrap());

    let call: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"convert", &file, &lokr, &"--to", &"peft-lokr"];
    refused(&call, 2, &["is LyCORIS's name", "--base"]);
    let own = ["down.0.q", "mlp.fc1", "mlp.fc2", "final_proj"];
    let base = dir.path().join("base");
    let weight =
        |(module, seed): (&str, u64)| (format!("{module}.weight"), tensor(Dtype::F32, &[48, 48], seed));
    std::fs::write(&base, serialize(&own.into_iter().zip(1..).map(weight).collect())).unwrap();
    report(&[&"convert", &file, &lokr, &"--to", &"peft-lokr", &"--base", &base]);
    let weights = tensors(&lokr.join("adapter_model.safetensors"));
    for (module, name) in own.iter().zip(names) {
        let theta = |file: &File, prefix: &str| file[&format!("{prefix}.lokr_w1")].bytes.clone();
        assert_eq!(theta(&weights, &format!("base_model.model.{module}")), theta(&stored, name));
    }
    report(&[&"merge", &base, &file, &out]);
}

/// Only the model relates LyCORIS's names to its own.
#[test]
fn diff_compares_modules_by_the_model_s_names() {
    let dir = dir();
    let kron = dir.path().join("kron");
    report(&[&"convert", &file("w2_product"), &kron, &"--base", &file("base")]);
    let call: [&dyn AsRef<std::ffi::OsStr>; 3] = [&"diff", &file("w2_product"), &kron];
    let apart = report(&call);
    let note = apart["notes"][0].as_str().unwrap();
    for says in ["no module is in both", "lycoris_block_down", "block.down", "--base MODEL"] {
        assert!(note.contains(says), "{note}");
    }
    assert!(run(&call).1.contains("\nnote: no module is in both"));
    assert_eq!(apart["total"]["cosine"], 0.0);
    let together = report(&[&"diff", &file("w2_product"), &kron, &"--base", &file("base")]);
    assert_eq!(
        (together["notes"].as_array().map(Vec::len), &together["layers"][0]["module"]),
        (Some(0), &"block.down".into())
    );
    assert!(together["total"]["relative_distance"].as_f64().unwrap() < 1e-7);
    let call: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"diff", &file("w2_product"), &kron, &"--base", &kron];
    refused(&call, 1, &["block", "no module"]);
}

#[test]
fn a_tensor_that_is_no_factor_is_refused() {
    let (dir, mut with) = (dir(), tensors(&file("factor_4")));
    with.insert("lycoris_up.weight".into(), tensor(Dtype::F32, &[2], 1));
    let path = dir.path().join("with.safetensors");
    std::fs::write(&path, serialize(&with)).unwrap();
    let says =
        "lycoris_up.weight is refused: it is not a factor of ΔW, and leaving it out would change the model";
    refused(&[&"convert", &path, &dir.path().join("out")], 1, &[says]);
}

/// No loader would find a module that the model lacks.
#[test]
fn every_module_that_the_model_lacks_is_refused() {
    let dir = dir();
    let [base, kron, out] = ["base", "kron", "out"].map(|name| dir.path().join(name));
    let weights = [("h.0.query", 1), ("h.0.key", 2)]
        .map(|(module, seed)| (format!("{module}.weight"), tensor(Dtype::F32, &[6, 10], seed)));
    std::fs::write(&base, serialize(&File::from(weights))).unwrap();
    let shape = KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap();
    ours(&[("h.0.key", shape, scaling(3.0, 1)), ("h.0.qury", shape, scaling(3.0, 1))], &kron);
    for to in ["kron", "lora", "lycoris"] {
        let call: [&dyn AsRef<std::ffi::OsStr>; 7] =
            [&"convert", &kron, &out, &"--to", &to, &"--base", &base];
        refused(&call, 1, &["h.0.qury matches no tensor", "near are h.0.query, h.0.key"]);
        assert!(!out.exists());
    }
}

#[test]
fn names_that_the_model_does_not_settle_are_refused() {
    let dir = dir();
    let [adapter, base, out] = ["adapter", "base", "out"].map(|name| dir.path().join(name));
    ours(
        &[(
            "lycoris_a_b",
            KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap(),
            scaling(3.0, 1),
        )],
        &adapter,
    );
    let weights = |modules: &[&str]| {
        let weight = |module: &&str| (format!("{module}.weight"), tensor(Dtype::F32, &[6, 10], 1));
        std::fs::write(&base, serialize(&modules.iter().map(weight).collect())).unwrap();
    };
    for (modules, convert, merge) in [
        (&["a.b", "a_b"][..], "may be a.b or a_b", "may be a.b or a_b"),
        (
            &["a.c"],
            "lycoris_a_b matches no tensor; near are a.c",
            "lycoris_a_b matches no tensor; near are a.c",
        ),
    ] {
        weights(modules);
        refused(&[&"convert", &adapter, &out, &"--base", &base], 1, &[convert]);
        refused(&[&"merge", &base, &adapter, &out], 1, &[merge]);
        assert!(!out.exists());
    }
    weights(&["a.b"]);
    report(&[&"merge", &base, &adapter, &out]);
}
